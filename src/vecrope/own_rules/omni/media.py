"""The media of an omni batch: what their arguments must be, and their numbers on the host."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from struct import Struct
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.faults import check_seconds
from vecrope.families.rules import OmniRule
from vecrope.forms.eager.items import read_grids
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

# Whole numbers from here on are not all float32.
MOST_FLOAT = 2**24
_pack, _unpack = Struct("f").pack, Struct("f").unpack
Count = TypeVar("Count", int, Tensor)
KINDS = ("image", "video", "audio")  # of media, in the order in which `Media` counts them


class Media(NamedTuple):
    """What a batch holds, a number each: all images before all videos, then the audios.

    What has the number -1 is text, which has one frame without a token.
    """

    firsts: tuple[int, int, int, int]  # numbers of the first image, video and audio, and the end
    size: list[int]  # tokens; 0 for what is not there
    # Of images and videos:
    depth: list[int]  # frames
    height: list[int]  # in tokens
    width: list[int]
    seconds: list[float]  # of a frame, as the time dtype has it
    has_sound: list[bool]  # whether `use_audio_in_video` says so, False for images

    def place(self, number: int) -> tuple[int, int]:
        """Return the number of a medium's kind in `KINDS`, and its own among those of the kind."""
        kind = bisect_right(self.firsts, number) - 1
        return kind, number - self.firsts[kind]


def omni_dtypes(
    inputs: Inputs, spec: MRopeSpec, rule: OmniRule
) -> tuple[torch.dtype, torch.dtype, int | None]:
    """Return the dtypes of positions and deltas, by whether there are grids; and what is padding.

    That is a position of the row as others; None: masked tokens hold the padding value of the spec.
    """
    name, padding = spec.position_dtype, None
    if inputs.image_grid_thw is None and inputs.video_grid_thw is None:
        name, padding = rule.text_dtype, rule.text_padding_value
    dtype = inputs.input_ids.dtype if name == "ids" else getattr(torch, name)
    return dtype, torch.float32 if dtype == torch.float32 else torch.int64, padding


def float32(value: float) -> float:
    """Return the float32 that is nearest, ties to even."""
    return _unpack(_pack(value))[0]  # type: ignore[no-any-return]


def audio_tokens(mel_frames: Count, n_window: int | None) -> Count:
    """Return how many tokens the audio encoder makes of so many mel frames.

    Example:
        >>> [(audio_tokens(length, None), audio_tokens(length, 50)) for length in (3, 100, 3000)]
        [(1, 1), (25, 13), (750, 390)]
    """
    if n_window is None:
        return (mel_frames + 1) // 4
    window = 2 * n_window
    return (mel_frames % window + 7) // 8 + mel_frames // window * 13


def chunk_length(spec: MRopeSpec, rule: OmniRule) -> int:
    """Return the positions of a chunk of a video and its sound."""
    return int((spec.tokens_per_second or 0) * (rule.seconds_per_chunk or 0))


def check_media_types(inputs: Inputs, spec: MRopeSpec, rule: OmniRule) -> None:
    """Check what the shared checks of types and shapes do not know; reads no value."""
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "tokens_per_second"):
        if getattr(spec, name) is None:
            raise ValueError(f"{name} must be given for {spec.model_type!r}, got None")
    if rule.seconds_per_chunk and not chunk_length(spec, rule):
        raise ValueError(
            "a chunk must hold at least one position, got tokens_per_second "
            f"{spec.tokens_per_second} times seconds_per_chunk {rule.seconds_per_chunk}"
        )
    if inputs.mm_token_type_ids is not None:
        raise ValueError(
            f"mm_token_type_ids must be None: {spec.model_type} tells its tokens by their ids"
        )
    flags, videos, lengths = inputs.use_audio_in_video, inputs.video_grid_thw, inputs.audio_seqlens
    if not isinstance(flags, bool):
        is_list = isinstance(flags, list | tuple)
        kinds: set[Any] = {*map(type, flags)} if is_list else {getattr(flags, "dtype", None)}
        if not kinds <= {bool, torch.bool}:
            raise TypeError(
                f"use_audio_in_video must be a bool, got {flags!r}; or a bool for each video"
            )
        checks.check_one_per_video(
            "use_audio_in_video", flags, 0 if videos is None else videos.shape[0]
        )
    if lengths is not None:
        checks.check_integral("audio_seqlens", lengths)
        if lengths.dim() != 1:
            raise ValueError(
                f"audio_seqlens must have shape (num_audios,), got {tuple(lengths.shape)}"
            )
    if torch.compiler.is_compiling():
        return  # no graph depends on the length: there the largest position is checked instead
    if spec.position_dtype == "float32" and inputs.input_ids.shape[-1] >= MOST_FLOAT:
        raise ValueError(
            f"{inputs.input_ids.shape[-1]} tokens in a row overflow the positions' dtype "
            "torch.float32, which tells whole numbers apart below 2**24"
        )


def read_media(inputs: Inputs, spec: MRopeSpec, rule: OmniRule) -> Media:
    """Return the media of a batch on a CPU.

    Raises:
        ValueError: for a grid, the seconds of a video or a length that is not sound.
    """
    given, flags = inputs.second_per_grid_ts, inputs.use_audio_in_video
    num_images, _, depth, height, width, area = read_grids(inputs, spec)
    in_video = depth[num_images:]
    check_seconds(given, in_video, spec)
    seconds = _listed(given) if given is not None else [spec.default_seconds or 0.0] * len(in_video)
    has_sound = [flags] * len(in_video) if isinstance(flags, bool) else _listed(flags)
    lengths = _listed(inputs.audio_seqlens)
    least = 3 if rule.n_window is None else 1
    for row, length in enumerate(lengths):
        if length and length < least:
            raise ValueError(
                f"audio_seqlens must be at least {least} to give a token, or 0 for no audio, "
                f"got {length} for audio {row}"
            )
    size = area + [audio_tokens(length, rule.n_window) for length in lengths]
    has_sound = [False] * num_images + has_sound
    seconds = array("f" if spec.time_dtype == "float32" else "d", seconds).tolist()
    firsts = 0, num_images, len(area), len(size)
    sides = [*depth, 1], [*height, 0], [*width, 0]
    return Media(firsts, [*size, 0], *sides, [1.0] * num_images + [*seconds, 0.0], has_sound)


def _listed(values: Tensor | Sequence[Any] | None) -> list[Any]:
    return values.tolist() if isinstance(values, Tensor) else [*(values or ())]
