"""The media of an omni batch as numbers on the host: what the prompt has to hold."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, chain, repeat
from operator import mul
from struct import Struct
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from vecrope.core import faults
from vecrope.families.rules import OmniRule
from vecrope.forms.eager.items import read_grids
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

# Whole numbers from here on are not all float32.
MOST_FLOAT = 2**24
_pack, _unpack = Struct("f").pack, Struct("f").unpack
Count = TypeVar("Count", int, Tensor)


class Media(NamedTuple):
    """What the rows of the grids describe, all images before all videos, and the audios.

    Behind the videos there is what text and audio have: one frame without a token.
    """

    num_images: int
    depth: list[int]  # frames
    height: list[int]  # in tokens
    width: list[int]
    area: list[int]  # tokens of all frames; 0 for what is not there
    seconds: list[float]  # of a frame, as the time dtype has it
    has_sound: list[bool]  # whether `use_audio_in_video` says so, False for images
    audio: list[int]  # tokens of each audio; 0 for what is not there
    offsets: Sequence[Sequence[float]] = ()  # in time, of each frame, as `timed` returns them
    begun: Sequence[Sequence[int]] = ()  # chunks of the sound that each frame begins, likewise


class Dtypes(NamedTuple):
    """What an answer is made of, which depends on whether there are grids."""

    positions: torch.dtype
    deltas: torch.dtype
    padding: int  # the position of masked tokens
    counts_padding: bool  # whether that counts as a position of the row

    @classmethod
    def of(cls, inputs: Inputs, spec: MRopeSpec, rule: OmniRule) -> Dtypes:
        """Return those of a batch."""
        ids, padding = inputs.input_ids.dtype, spec.padding_value
        dtypes = {"ids": ids, "int64": torch.int64, "float32": torch.float32}
        if inputs.image_grid_thw is not None or inputs.video_grid_thw is not None:
            dtype, counts = dtypes[spec.position_dtype], False
        else:
            dtype, counts = dtypes[rule.text_dtype], rule.text_padding_value is not None
            padding = padding if rule.text_padding_value is None else rule.text_padding_value
        deltas = torch.float32 if dtype == torch.float32 else torch.int64
        return cls(dtype, deltas, padding, counts)


def float32(value: float) -> float:
    """Return the float32 that is nearest, ties to even."""
    return _unpack(_pack(value))[0]  # type: ignore[no-any-return]


def audio_tokens(mel_frames: Count, n_window: int | None) -> Count:
    """Return how many tokens the audio encoder makes of so many mel frames.

    Example:
        >>> [audio_tokens(mel_frames, None) for mel_frames in (3, 100, 3000)]
        [1, 25, 750]
        >>> [audio_tokens(mel_frames, 50) for mel_frames in (1, 100, 3000)]
        [1, 13, 390]
    """
    if n_window is None:
        return (mel_frames + 1) // 4
    window = 2 * n_window
    return (mel_frames % window + 7) // 8 + mel_frames // window * 13


def chunk_length(spec: MRopeSpec, rule: OmniRule) -> int:
    """Return the positions of a chunk of a video and its sound."""
    return int((spec.tokens_per_second or 0) * (rule.seconds_per_chunk or 0))


def seconds_of(inputs: Inputs, spec: MRopeSpec, num_videos: int) -> Tensor:
    """Return (V,) the seconds of a frame of each video, rounded to the time dtype."""
    given = inputs.second_per_grid_ts
    if given is None:
        # Without a default a checked call refuses videos.
        default = -1.0 if spec.default_seconds is None else spec.default_seconds
        device = inputs.input_ids.device
        given = torch.full((num_videos,), default, dtype=torch.float64, device=device)
    elif not isinstance(given, Tensor):
        given = torch.tensor(given, dtype=torch.float64, device="cpu")
    return given.to(torch.float32 if spec.time_dtype == "float32" else torch.float64)


def sound_of(inputs: Inputs, num_videos: int) -> Tensor:
    """Return (V,) bool: which videos have sound."""
    given = inputs.use_audio_in_video
    if isinstance(given, bool):
        device = inputs.input_ids.device
        return torch.full((num_videos,), given, dtype=torch.bool, device=device)
    return torch.as_tensor(given, dtype=torch.bool)


def read_media(inputs: Inputs, spec: MRopeSpec, rule: OmniRule) -> Media:
    """Return the media of a batch on a CPU.

    Raises:
        ValueError: for a grid, the seconds of a video or a length that is not sound.
    """
    images, videos = inputs.image_grid_thw, inputs.video_grid_thw
    rows = [] if images is None else images.tolist()
    num_images = len(rows)
    rows += [] if videos is None else videos.tolist()
    num_videos = len(rows) - num_images
    seconds = seconds_of(inputs, spec, num_videos).tolist()
    grids: Sequence[list[int]] | None = ([],) * 5
    if rows:
        grids = read_grids(rows, num_images, spec, round_grid_sides=inputs.round_grid_sides)
    if grids is None or not _are_sound(seconds, grids[1], spec):
        none = torch.empty((0, 3), dtype=torch.int64, device="cpu")
        of_videos = none if videos is None else videos
        of_images = none if images is None else images
        faults.check_grids(of_images, of_videos, spec, round_grid_sides=inputs.round_grid_sides)
        faults.check_seconds(inputs.second_per_grid_ts, of_videos[:, 0].tolist(), spec)
    if grids is None:
        raise ValueError("the grids must describe fewer than 2**30 tokens in all")
    lengths = [] if inputs.audio_seqlens is None else inputs.audio_seqlens.tolist()
    audio = [audio_tokens(length, rule.n_window) if length else 0 for length in lengths]
    for row, length in enumerate(lengths):
        if length and not length >= 1 <= audio[row]:
            least = 1 if rule.n_window is not None else 3
            raise ValueError(
                f"audio_seqlens must be at least {least} to give a token, or 0 for no audio, "
                f"got {length} for audio {row}"
            )
    depth, height, width, area = (
        [*of_grids, of_text] for of_grids, of_text in zip(grids[1:], (1, 0, 0, 0), strict=True)
    )
    has_sound = [False] * num_images + sound_of(inputs, num_videos).tolist() + [False]
    seconds = [1.0] * num_images + seconds + [0.0]
    return Media(num_images, depth, height, width, area, seconds, has_sound, audio)


def timed(media: Media, visuals: Iterable[int], spec: MRopeSpec, rule: OmniRule) -> Media:
    """Return media with `offsets` and `begun`, of some visuals.

    Each product is rounded as the upstream rounds it, those of all visuals at once.
    """
    # The first frame comes at once, and there may be no second.
    given = {*visuals}
    depth = [frames if frames > 1 and at in given else 0 for at, frames in enumerate(media.depth)]
    # The product of two float32 is exact in double precision.
    rounded = partial(array, "f" if spec.time_dtype == "float32" else "d")
    rate = rounded((spec.tokens_per_second,))[0]
    steps: Iterable[float] = media.seconds
    if spec.time_order != "seconds":
        steps = rounded(map(mul, steps, repeat(rate)))
    frames = chain.from_iterable(map(range, depth))
    times = rounded(map(mul, frames, chain.from_iterable(map(repeat, steps, depth))))
    if spec.time_order == "seconds":
        times = rounded(map(mul, times, repeat(rate)))
    whole = [*map(int, times)] if rule.whole_times else times
    offsets: list[Sequence[float]] = [
        whole[end - frames : end] if frames else (0,)
        for frames, end in zip(depth, accumulate(depth), strict=True)
    ]
    begun: list[Sequence[int]] = [()] * len(depth)
    if rule.interleave != "merge" and any(media.has_sound):
        length, walk = chunk_length(spec, rule), rule.interleave == "walk"
        begun = [
            _chunks_begun(of, height * width, length, walk=walk)
            for of, height, width in zip(offsets, media.height, media.width, strict=True)
        ]
    return media._replace(offsets=offsets, begun=begun)


def _chunks_begun(offsets: Sequence[float], in_frame: int, length: int, *, walk: bool) -> list[int]:
    """Return how many chunks of the sound stand in front of the tokens of each frame, one each."""
    begun: list[int] = []
    chunk = previous = 0
    for offset in offsets:
        current = int(offset // length)
        begun.append(min(current - chunk if walk else int(current > previous), in_frame))
        chunk, previous = chunk + begun[-1], current
    return begun


def _are_sound(seconds: list[float], frames: list[int], spec: MRopeSpec) -> bool:
    """Say whether all is surely well; False for what takes a closer look."""
    rate = spec.tokens_per_second
    assert rate is not None
    # A sum, since it shows what is no number.
    return min(seconds, default=0.0) >= 0 and sum(seconds) * rate * sum(frames) < 2**30
