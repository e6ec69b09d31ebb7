"""Whether grids and seconds are sound by themselves, and what stands for an exception if traced."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vecrope.spec import MRopeSpec

_KINDS = ("image", "video")
_MAX_TOKENS = 2**30


def check_grids(
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    spec: MRopeSpec,
    *,
    round_grid_sides: bool = False,
) -> None:
    """Check that every grid row is all zeros, or positive and divisible by the merge size.

    If `round_grid_sides` it is enough that no side is smaller.
    """
    merge = spec.spatial_merge_size
    for kind, grids in zip(_KINDS, (image_grid_thw, video_grid_thw), strict=True):
        tokens = 0
        for at, grid in enumerate(map(tuple, () if grids is None else grids.tolist())):
            frames, *sides = grid
            tokens += frames * sides[0] * sides[1] // merge**2
            name = f"{kind}_grid_thw row {at}"
            if any(grid) and min(grid) <= 0:
                raise ValueError(f"{name} must be positive, or all zeros for no {kind}, got {grid}")
            if any(0 < side < merge if round_grid_sides else side % merge for side in sides):
                what = "of at least" if round_grid_sides else "divisible by"
                raise ValueError(
                    f"{name} must have a height and width {what} spatial_merge_size {merge}, "
                    f"got {grid}"
                )
            if tokens >= _MAX_TOKENS:
                raise ValueError(
                    f"{kind}_grid_thw must describe fewer than 2**30 tokens, row {at} {grid} "
                    "exceeds that"
                )
            if kind == "image" and frames > 1 and not spec.multi_frame_images:
                raise ValueError(
                    f"{name} must have one frame, as {spec.convention} asks of {spec.model_type}, "
                    f"got {grid}"
                )
            if kind == "video" and 0 < frames < spec.temporal_merge_size:
                raise ValueError(
                    f"{name} must have at least temporal_merge_size {spec.temporal_merge_size} "
                    f"frames, got {grid}"
                )


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
    values = seconds.tolist() if isinstance(seconds, Tensor) else seconds
    assert spec.tokens_per_second is not None
    limit, most, total = float(_MAX_TOKENS), "2**30", 0.0
    if (
        isinstance(seconds, Tensor)
        and seconds.dtype == torch.float16
        and spec.time_dtype == "given"
    ):
        limit, most = 65504, "65504, as torch.float16 asks"
    for at, (value, frames) in enumerate(zip(values, frames_of_videos, strict=True)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"second_per_grid_ts must be finite and not negative, got {float(value)} for "
                f"video {at}"
            )
        times = value * (spec.tokens_per_second * frames)
        total += times
        if not (times < limit and total < _MAX_TOKENS):
            raise ValueError(
                f"second_per_grid_ts must keep all positions below {most}, got {float(value)} for "
                f"video {at} of {frames} frames"
            )


def invalidate(fault: Tensor, position_ids: Tensor, rope_deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Fill the answer with -1, and the deltas with their least value, where `fault` is set.

    Under tracing this stands for an exception. `fault` is a 0-d bool. The least value of deltas
    that are fractions is that of int64.
    """
    dtype = torch.int64 if rope_deltas.is_floating_point() else rope_deltas.dtype
    least = torch.iinfo(dtype).min
    return position_ids.masked_fill(fault, -1), rope_deltas.masked_fill(fault, least)
