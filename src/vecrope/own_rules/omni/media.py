"""The media of an omni batch as numbers on the host: what the prompt has to hold."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_float
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from vecrope.core import faults
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

# Whole numbers from here on are not all float32.
MOST_FLOAT = 2**24
Count = TypeVar("Count", int, Tensor)


class Medium(NamedTuple):
    """An image, a video or an audio that is not of size zero."""

    row: int  # of `image_grid_thw`, `video_grid_thw` or `audio_seqlens`
    frames: int = 0
    height: int = 0  # in tokens
    width: int = 0
    seconds: float = 1.0  # of a frame, as the time dtype has it
    audio: int = 0  # tokens
    has_sound: bool = False  # as `use_audio_in_video` says


def float32(value: float) -> float:
    """Return the float32 that is nearest, ties to even."""
    return c_float(value).value


def audio_tokens(mel_frames: Count, n_window: int | None) -> Count:
    """Return how many tokens the audio encoder makes of so many mel frames.

    Example:
        >>> [audio_tokens(mel_frames, None) for mel_frames in (3, 100, 3000)]
        [1, 25, 750]
        >>> [audio_tokens(mel_frames, 50) for mel_frames in (1, 100, 3000)]
        [1, 13, 390]
    """
    if n_window is None:
        return (_halved(mel_frames) - 2) // 2 + 1
    window = 2 * n_window
    return _halved(_halved(_halved(mel_frames % window))) + mel_frames // window * 13


def _halved(length: Count) -> Count:
    return (length - 1) // 2 + 1


def read_media(inputs: Inputs, spec: MRopeSpec, rule: OmniRule) -> tuple[list[Medium], ...]:
    """Return the images, the videos and the audios, each in the order of the prompt.

    Args:
        inputs: on a CPU; types and shapes have been checked.
        spec: the family's rules.
        rule: likewise.

    Raises:
        ValueError: for a grid, the seconds of a video or a length that is not sound.
    """
    grids = inputs.image_grid_thw, inputs.video_grid_thw
    images, videos = ([] if given is None else given.tolist() for given in grids)
    merge, seconds = spec.spatial_merge_size, _seconds(inputs, spec, len(videos))
    if not _sound(images + videos, seconds, spec):
        none = torch.empty((0, 3), dtype=torch.int64)
        of_images, of_videos = (none if given is None else given for given in grids)
        faults.check_grids(of_images, of_videos, spec, round_grid_sides=inputs.round_grid_sides)
        faults.check_seconds(inputs.second_per_grid_ts, of_videos, spec)
    flags = inputs.use_audio_in_video
    has_sound = [flags] * len(videos) if isinstance(flags, bool) else _list(flags)
    lengths = [] if inputs.audio_seqlens is None else inputs.audio_seqlens.tolist()
    audios = []
    for row, length in enumerate(lengths):
        tokens = audio_tokens(length, rule.n_window) if length > 0 else 0
        if length and tokens < 1:
            least = 1 if rule.n_window is not None else 3
            raise ValueError(
                f"audio_seqlens must be at least {least} to give a token, or 0 for no audio, got "
                f"{length} for audio {row}"
            )
        if length:
            audios.append(Medium(row, audio=tokens))
    return (
        [Medium(row, t, h // merge, w // merge) for row, (t, h, w) in enumerate(images) if t],
        [
            Medium(row, t, h // merge, w // merge, seconds[row], has_sound=bool(has_sound[row]))
            for row, (t, h, w) in enumerate(videos)
            if t
        ],
        audios,
    )


def _list(flags: Tensor | Sequence[bool]) -> list[bool]:
    return [*flags.tolist()] if isinstance(flags, Tensor) else [*flags]


def _seconds(inputs: Inputs, spec: MRopeSpec, num_videos: int) -> list[float]:
    given = inputs.second_per_grid_ts
    if given is None:
        # Without a default a video is refused.
        default = -1.0 if spec.default_seconds is None else spec.default_seconds
        return [default] * num_videos
    if isinstance(given, Tensor):
        given = given.double().tolist()
    return [*map(float32 if spec.time_dtype == "float32" else float, given)]


def _sound(grids: list[list[int]], seconds: list[float], spec: MRopeSpec) -> bool:
    """Say whether all is surely well; False for what takes a closer look."""
    merge, tokens = spec.spatial_merge_size, 0
    for t, h, w in grids:
        if t < 1 or h < 1 or w < 1 or h % merge or w % merge:
            return False
        tokens += t * h * w
    rate = spec.tokens_per_second
    assert rate is not None
    frames = sum(t for t, _, _ in grids)
    # A sum, since it shows what is no number.
    time = sum(seconds) * rate * frames
    return tokens < 2**30 and min(seconds, default=0.0) >= 0 and time < 2**30
