"""Prompts of text, pictures, clips and audio for Qwen3-Omni, of which no two are alike."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.omni import MODEL_TYPE
from bench.prompts import Workload
from vecrope import MRopeSpec
from vecrope.testing import Prompt
from vecrope.testing.sound import sound_block


def _mixed(name: str, seq_len: int, *, sound: bool) -> Workload:
    """Return one prompt of text, pictures, clips and audio, of which no two are alike.

    As in `bench.mixed`, areas and lengths are drawn evenly on a logarithmic scale.

    Args:
        name: of the workload, which seeds the drawing.
        seq_len: tokens.
        sound: whether clips have their sound.
    """
    rng = random.Random(f"{name} {seq_len}")
    spec = MRopeSpec.for_model(MODEL_TYPE, convention="transformers")

    def between(low: float, high: float) -> float:
        return math.exp(rng.uniform(math.log(low), math.log(max(low, high))))

    def sides(most: float) -> tuple[int, int]:
        area, stretch = between(12, most), math.sqrt(between(0.4, 2.5))
        return round(math.sqrt(area) * stretch), round(math.sqrt(area) / stretch)

    symbols, largest = "", min(4096, max(24, seq_len // 6))
    images: list[tuple[int, int, int]] = []
    videos: list[tuple[int, int, int]] = []
    seconds: list[float] = []
    audios: list[int] = []
    left_out = 0
    for number in itertools.count():
        symbols += "t" * round(between(4, min(128, seq_len // 12)))
        kind = ("image", "video", "audio", "image", "video")[number % 5]
        given: list[tuple[list[Any], Any]]
        if kind == "image":
            height, width = sides(largest)
            piece, given = f"<{'I' * (height * width)}>", [(images, (1, 2 * height, 2 * width))]
        elif kind == "audio":
            mel_frames = round(between(20, min(3000, seq_len)))
            piece, given = f"({sound_block(spec, (0, 1, 1), 0.0, mel_frames)})", []
            given.append((audios, mel_frames))
        else:
            steps = rng.randint(2, 12 if seq_len > 1000 else 4)
            height, width = sides(max(24, 2 * largest // steps))
            step = round(2 / rng.uniform(0.5 if seq_len > 1000 else 2.5, 4), 4)
            piece = f"<{'V' * (steps * height * width)}>"
            given = [(videos, (steps, 2 * height, 2 * width)), (seconds, step)]
            if sound:
                mel_frames = int(steps * step * 100)
                block = sound_block(spec, (steps, height, width), step, mel_frames)
                piece = f"<({block})>"
                given.append((audios, mel_frames))
        if len(symbols) + len(piece) > seq_len:
            left_out += 1
            if left_out == 3:
                break
            continue
        symbols += piece
        for values, value in given:
            values.append(value)
    prompt = Prompt.from_symbols(
        spec,
        [(symbols + "t" * seq_len)[:seq_len]],
        image_grid_thw=images or None,
        video_grid_thw=videos or None,
        audio_seqlens=audios or None,
        second_per_grids=seconds or None,
    )
    return Workload(
        name=name,
        input_ids=prompt.input_ids,
        attention_mask=None,
        mm_token_type_ids=torch.zeros_like(prompt.input_ids),
        image_grid_thw=prompt.image_grid_thw,
        video_grid_thw=prompt.video_grid_thw,
        second_per_grid_ts=prompt.second_per_grids,
        audio_seqlens=prompt.audio_seqlens,
        use_audio_in_video=sound,
        model_type=MODEL_TYPE,
    )


MAKERS: dict[str, Callable[[int], Workload]] = {
    f"mixed-omni{suffix}": partial(_mixed, f"mixed-omni{suffix}", sound=bool(suffix))
    for suffix in ("", "-sound")
}
SIZES: dict[str, tuple[int, ...]] = dict.fromkeys(MAKERS, (180, 900, 4000, 16384, 131072))
