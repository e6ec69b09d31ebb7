"""Whether arguments are sound by themselves, and what stands for an exception if traced."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vecrope.core.items import grids_of
from vecrope.core.modality import VIDEO
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

MAX_TOKENS = 2**30  # of a batch, and of what its grids describe: fewer


def check_grids(
    images: Sequence[Sequence[int]],
    videos: Sequence[Sequence[int]],
    spec: MRopeSpec,
    *,
    round_grid_sides: bool = False,
) -> None:
    """Check that every grid row is all zeros, or positive and divisible by the merge size.

    If `round_grid_sides` it is enough that no side is smaller.
    """
    merge, in_all = spec.spatial_merge_size, 0
    for kind, grids in (("image", images), ("video", videos)):
        temporal_merge = 1 if kind == "image" else spec.temporal_merge_size
        tokens = 0
        for at, grid in enumerate(map(tuple, grids)):
            frames, *sides = grid
            tokens += frames // temporal_merge * (sides[0] // merge) * (sides[1] // merge)
            if any(grid) and min(grid) <= 0:
                asked = f"be positive, or all zeros for no {kind}"
            elif any(0 < side < merge if round_grid_sides else side % merge for side in sides):
                what = "of at least" if round_grid_sides else "divisible by"
                asked = f"have a height and width {what} spatial_merge_size {merge}"
            elif tokens >= MAX_TOKENS:
                raise ValueError(
                    f"{kind}_grid_thw must describe fewer than 2**30 tokens, row {at} {grid} "
                    "exceeds that"
                )
            elif kind == "image" and frames > 1 and not spec.multi_frame_images:
                asked = f"have one frame, as {spec.convention} asks of {spec.model_type}"
            elif 0 < frames < temporal_merge:
                asked = f"have at least temporal_merge_size {temporal_merge} frames"
            else:
                continue
            raise ValueError(f"{kind}_grid_thw row {at} must {asked}, got {grid}")
        in_all += tokens
    if in_all >= MAX_TOKENS:
        raise ValueError("the grids must describe fewer than 2**30 tokens in all")


def check_seconds(
    seconds: Tensor | Sequence[float] | None, frames_of_videos: Sequence[int], spec: MRopeSpec
) -> None:
    """Check that the seconds of every video are sound; synchronises where there are any."""
    if spec.video_time != "seconds":
        return
    if seconds is None:
        if frames_of_videos and spec.default_seconds is None:
            raise ValueError(
                f"second_per_grid_ts must be given for the videos of {spec.model_type}, got None"
            )
        return
    values, rate = seconds, spec.tokens_per_second
    assert rate is not None
    limit, total = _time_limit(seconds, spec), 0.0
    most = "2**30" if limit == MAX_TOKENS else f"{limit}, as torch.float16 asks"
    if isinstance(seconds, Tensor):
        values = seconds.tolist()
    for at, (value, frames) in enumerate(zip(values, frames_of_videos, strict=True)):
        times = value * (rate * frames)
        total += times
        if not (math.isfinite(value) and value >= 0):
            asked, of = "be finite and not negative", ""
        elif not (times < limit and total < MAX_TOKENS):
            asked, of = f"keep all positions below {most}", f" of {frames} frames"
        else:
            continue
        raise ValueError(f"second_per_grid_ts must {asked}, got {float(value)} for video {at}{of}")


def _time_limit(seconds: Tensor | Sequence[float] | None, spec: MRopeSpec) -> int:
    """Return what the frames of a video must not reach in time."""
    is_half = isinstance(seconds, Tensor) and seconds.dtype == torch.float16
    return 65504 if is_half and spec.time_dtype == "given" else MAX_TOKENS


def unsound(inputs: Inputs, spec: MRopeSpec) -> Tensor:
    """Return, as a 0-d bool, whether any argument is not sound by itself; reads no value.

    It is what would be raised for grids, seconds, the bounds of sequences and the codes of the mask
    and the types, whatever the tokens are.
    """
    ids, mask, types = inputs.input_ids, inputs.attention_mask, inputs.mm_token_type_ids
    device = ids.device
    found: list[Tensor] = []
    if mask is not None:
        mask = mask.to(device)
        if mask.dtype != torch.bool:
            found.append(((mask != 0) & (mask != 1)).any())
    if types is not None:
        types = types.to(device)
        strange = (types < 0) | (types > VIDEO)
        found.append((strange if mask is None else strange & (mask != 0)).any())
    if inputs.cu_seqlens is not None:
        bounds = inputs.cu_seqlens.to(device)
        found += [bounds[0] != 0, bounds[-1] != ids.shape[0], (bounds.diff() < 0).any()]
    images, videos = (
        grids_of(grids, device) for grids in (inputs.image_grid_thw, inputs.video_grid_thw)
    )
    found += _unsound_grids(images, videos, spec, round_grid_sides=inputs.round_grid_sides)
    if spec.video_time == "seconds":
        frames = videos[:, 0] // spec.temporal_merge_size
        found += _unsound_seconds(inputs.second_per_grid_ts, frames, spec)
    return torch.stack(found).any()


def _unsound_grids(
    images: Tensor, videos: Tensor, spec: MRopeSpec, *, round_grid_sides: bool
) -> list[Tensor]:
    """Return what is wrong as `check_grids` says, 0-d bool."""
    grids, num_images = torch.cat((images, videos)), images.shape[0]
    frames, sides = grids[:, :1], grids[:, 1:]
    found: list[Tensor] = []
    if not round_grid_sides:
        found.append((sides % spec.spatial_merge_size != 0).any())
    if not spec.multi_frame_images:
        found.append((frames[:num_images] > 1).any())
    if spec.temporal_merge_size > 1:
        of_videos = frames[num_images:] // spec.temporal_merge_size
        frames = torch.cat((frames[:num_images], of_videos))
    sizes = torch.cat((frames, sides // spec.spatial_merge_size), 1)
    sound = (sizes > 0).all(1) | (grids == 0).all(1)
    return [*found, ~sound.all(), sizes.double().prod(1).sum() >= MAX_TOKENS]


def _unsound_seconds(
    seconds: Tensor | Sequence[float] | None, frames: Tensor, spec: MRopeSpec
) -> list[Tensor]:
    """Return what is wrong as `check_seconds` says, 0-d bool, of (num_videos,) frames."""
    limit, rate = _time_limit(seconds, spec), spec.tokens_per_second
    assert rate is not None
    if seconds is None:
        if spec.default_seconds is not None:
            return []
        seconds = torch.full_like(frames, -1)  # which is none
    elif not isinstance(seconds, Tensor):
        seconds = torch.tensor(seconds, dtype=torch.float64, device="cpu")
    seconds = seconds.to(frames.device, torch.float64)
    times = seconds * (rate * frames)
    sound = (seconds >= 0) & (times < limit)
    return [~sound.all(), ~(times.sum() < MAX_TOKENS)]


def invalidate(fault: Tensor, position_ids: Tensor, rope_deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Fill the answer with -1, and deltas with their least value, where `fault`, 0-d bool, is set.

    Under tracing this stands for an exception. Of fractions the least value is that of int64.
    """
    dtype = torch.int64 if rope_deltas.is_floating_point() else rope_deltas.dtype
    least = torch.iinfo(dtype).min
    return position_ids.masked_fill(fault, -1), rope_deltas.masked_fill(fault, least)
