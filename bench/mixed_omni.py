"""Prompts of text, pictures, clips and audio for the omni families, of which no two are alike."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.omni import MODEL_TYPE, MODEL_TYPES
from bench.prompts import Workload
from vecrope import MRopeSpec
from vecrope.testing import Prompt
from vecrope.testing.sound import sound_block

_SIZES = (180, 900, 4000, 16384, 131072)
_BATCH_ROWS = 8


class _Media:
    """The media of prompts, in their order."""

    def __init__(self) -> None:
        self.images: list[tuple[int, int, int]] = []
        self.videos: list[tuple[int, int, int]] = []
        self.seconds: list[float] = []
        self.audios: list[int] = []


def _draw(rng: random.Random, spec: MRopeSpec, seq_len: int, media: _Media, *, sound: bool) -> str:
    """Return the tokens of a prompt, and add what they show.

    As in `bench.mixed`, areas and lengths are drawn evenly on a logarithmic scale.

    Args:
        rng: the source of all that is drawn.
        spec: of the family.
        seq_len: tokens.
        media: of the prompts before.
        sound: whether clips have their sound.
    """

    def between(low: float, high: float) -> float:
        return math.exp(rng.uniform(math.log(low), math.log(max(low, high))))

    def sides(most: float) -> tuple[int, int]:
        area, stretch = between(12, most), math.sqrt(between(0.4, 2.5))
        return round(math.sqrt(area) * stretch), round(math.sqrt(area) / stretch)

    symbols, largest = "", min(4096, max(24, seq_len // 6))
    left_out = 0
    for number in itertools.count():
        symbols += "t" * round(between(4, min(128, seq_len // 12)))
        kind = ("image", "video", "audio", "image", "video")[number % 5]
        given: list[tuple[list[Any], Any]]
        if kind == "image":
            height, width = sides(largest)
            piece = f"<{'I' * (height * width)}>"
            given = [(media.images, (1, 2 * height, 2 * width))]
        elif kind == "audio":
            mel_frames = round(between(20, min(3000, seq_len)))
            piece = f"({sound_block(spec, (0, 1, 1), 0.0, mel_frames)})"
            given = [(media.audios, mel_frames)]
        else:
            steps = rng.randint(2, 12 if seq_len > 1000 else 4)
            height, width = sides(max(24, 2 * largest // steps))
            step = round(2 / rng.uniform(0.5 if seq_len > 1000 else 2.5, 4), 4)
            piece = f"<{'V' * (steps * height * width)}>"
            given = [(media.videos, (steps, 2 * height, 2 * width)), (media.seconds, step)]
            if sound:
                mel_frames = int(steps * step * 100)
                block = sound_block(spec, (steps, height, width), step, mel_frames)
                piece = f"<({block})>"
                given.append((media.audios, mel_frames))
        if len(symbols) + len(piece) > seq_len:
            left_out += 1
            if left_out == 3:
                break
            continue
        symbols += piece
        for values, value in given:
            values.append(value)
    return (symbols + "t" * seq_len)[:seq_len]


def _mixed(name: str, model_type: str, seq_len: int, *, sound: bool, num_rows: int) -> Workload:
    """Return a prompt, or some of unlike lengths that are padded at the left.

    Args:
        name: of the workload, which seeds the drawing.
        model_type: of an omni family.
        seq_len: tokens of the longest prompt, which is the first.
        sound: whether clips have their sound.
        num_rows: how many prompts.
    """
    rng = random.Random(f"{name} {seq_len}")
    spec = MRopeSpec.for_model(model_type, convention="transformers")
    lengths = [seq_len, *(rng.randint(seq_len // 4, seq_len) for _ in range(num_rows - 1))]
    media = _Media()
    rows = [_draw(rng, spec, length, media, sound=sound) for length in lengths]
    prompt = Prompt.from_symbols(
        spec,
        [row.rjust(seq_len, "t") for row in rows],
        mask=[("1" * length).rjust(seq_len, "0") for length in lengths] if num_rows > 1 else None,
        image_grid_thw=media.images or None,
        video_grid_thw=media.videos or None,
        audio_seqlens=media.audios or None,
        second_per_grids=media.seconds or None,
    )
    mask = prompt.attention_mask
    return Workload(
        name=name,
        input_ids=prompt.input_ids,
        attention_mask=None if mask is None else mask.long(),
        mm_token_type_ids=torch.zeros_like(prompt.input_ids),
        image_grid_thw=prompt.image_grid_thw,
        video_grid_thw=prompt.video_grid_thw,
        second_per_grid_ts=prompt.second_per_grids,
        audio_seqlens=prompt.audio_seqlens,
        use_audio_in_video=sound,
        model_type=model_type,
        convention=None if model_type == MODEL_TYPE else "transformers",  # SGLang has no other
    )


def prompt(name: str, seq_len: int) -> Workload:
    """Return a prompt of Qwen3-Omni without sound in its clips; the name seeds the drawing."""
    return _mixed(name, MODEL_TYPE, seq_len, sound=False, num_rows=1)


MAKERS: dict[str, Callable[[int], Workload]] = {}
SIZES: dict[str, tuple[int, ...]] = {}
for _family, _model_type in zip(("mixed-omni", "mixed-omni2.5"), MODEL_TYPES, strict=True):
    for _kind, _num_rows, _sizes in (("", 1, _SIZES), ("-batch", _BATCH_ROWS, (1000,))):
        for _suffix in ("", "-sound"):
            _name = f"{_family}{_kind}{_suffix}"
            MAKERS[_name] = partial(
                _mixed, _name, _model_type, sound=bool(_suffix), num_rows=_num_rows
            )
            SIZES[_name] = _sizes
