"""The grids as numbers on the host: how many groups each item has, and what each holds."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, repeat
from operator import mul, sub
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.core.faults import MAX_TOKENS, check_grids, check_seconds
from vecrope.core.items import has_time_scale, time_dtypes
from vecrope.core.modality import IMAGE, VIDEO
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

_Grids = tuple[int, list[int], list[int], list[int], list[int], list[int]]


class TimeScale(NamedTuple):
    """Factors that make the number of a frame in its group its temporal offset, of V groups."""

    dtype: torch.dtype  # to which each product is rounded
    steps: Sequence[float]  # (V,)
    scales: Sequence[float]  # (V,)


class Items(NamedTuple):
    """What the rows of the grids describe, all images before all videos: a number a row."""

    num_images: int
    groups: list[int]  # groups of the item; 0 for a row of zeros
    depth: list[int]  # frames of a group
    height: list[int]  # in tokens
    width: list[int]
    area: list[int]  # tokens of a group
    advance: list[int]  # by how much a group moves the running position
    extent: list[int]  # temporal positions that a group takes
    between: Sequence[Sequence[int]]  # from each frame to the next; empty where all are 1
    time_scale: TimeScale | None  # of the videos, where some have a next frame in time

    def of_groups(self, kind: int) -> Sequence[int]:
        """Return the item of each group of images, or of videos."""
        first, stop = (0, self.num_images) if kind == IMAGE else (self.num_images, len(self.groups))
        return [*chain.from_iterable(map(repeat, range(first, stop), self.groups[first:stop]))]

    def in_order(self, kinds: Iterable[int]) -> list[int]:
        """Return the item of each group in the order of the batch, by kind; up to one too many."""
        of_kind = {kind: iter(self.of_groups(kind)) for kind in (IMAGE, VIDEO)}
        # An exhausted iterator ends the list.
        return [*map(next, map(of_kind.__getitem__, kinds))]


def read_items(inputs: Inputs, spec: MRopeSpec) -> Items:
    """Return the items of a batch's grids on any device; a ValueError names what is not sound."""
    num_images, groups, depth, height, width, area = read_grids(inputs, spec)
    extent, time_scale = depth, None
    between: list[Sequence[int]] = [()] * len(depth)
    if has_time_scale(spec):
        extent = depth.copy()
        if spec.image_time == "none":
            extent[:num_images] = [1] * num_images
            between[:num_images] = [(0,) * (frames - 1) for frames in depth[:num_images]]
        in_video, seconds = depth[num_images:], inputs.second_per_grid_ts
        check_seconds(seconds, in_video, spec)
        if spec.video_time == "seconds" and max(in_video, default=1) > 1:
            time_scale = _time_scale(in_video, spec, seconds)
            # A row of zeros has no frame, and no token that would miss one.
            in_video = [frames or 1 for frames in in_video]
            extent[num_images:], between[num_images:] = steps_of_frames(in_video, time_scale)
    # `max` takes four times as long for two numbers.
    advance = [tall if tall > wide else wide for tall, wide in zip(height, width, strict=True)]
    if spec.span_rule == "thw":
        advance = [*map(max, advance, extent)]
    sizes = depth, height, width, area, advance, extent
    return Items(num_images, groups, *sizes, between, time_scale)


def read_grids(inputs: Inputs, spec: MRopeSpec) -> _Grids:
    """Return the number of images; and groups, depth, height, width and area, as `Items` has them.

    A ValueError names what is not sound.
    """
    images, videos = (
        [] if grids is None else grids.tolist()
        for grids in (inputs.image_grid_thw, inputs.video_grid_thw)
    )
    num_images, rows = len(images), images + videos
    if not rows:
        return 0, [], [], [], [], []
    merge, temporal_merge = spec.spatial_merge_size, spec.temporal_merge_size
    frames, tall, wide = map(list, zip(*rows, strict=True))
    sides, in_video = {*tall, *wide}, frames[num_images:]
    zeros = min(min(frames), min(sides)) < 1
    # What is sound at a glance; the check says what else is.
    if (
        zeros
        or any(side % merge for side in sides)
        or min(in_video, default=temporal_merge) < temporal_merge
        or (not spec.multi_frame_images and max(frames[:num_images], default=1) > 1)
    ):
        check_grids(images, videos, spec, round_grid_sides=inputs.round_grid_sides)
    height, width = ([side // merge for side in of_items] for of_items in (tall, wide))
    if temporal_merge > 1:
        frames[num_images:] = [number // temporal_merge for number in in_video]
    depth, groups = frames, [1] * len(rows)
    if spec.separate_frames:
        depth = frames[:num_images] + [1] * len(in_video)
        groups[num_images:] = in_video
    area = [*map(mul, map(mul, depth, height), width)]
    if zeros:
        groups = [number if tokens else 0 for number, tokens in zip(groups, area, strict=True)]
    if sum(map(mul, groups, area)) >= MAX_TOKENS:
        check_grids(images, videos, spec, round_grid_sides=inputs.round_grid_sides)
    return num_images, groups, depth, height, width, area


def _time_scale(
    frames_of_videos: Sequence[int], spec: MRopeSpec, seconds: Tensor | Sequence[float] | None
) -> TimeScale:
    """Return what `core.items.video_time_scale` does, with a step of 0 where there is no frame."""
    dtype, counted = time_dtypes(seconds, spec)
    num_videos = len(frames_of_videos)
    rates, scales = [spec.tokens_per_second or 0.0] * num_videos, [1.0] * num_videos
    if seconds is None:
        seconds = [spec.default_seconds or 0.0] * num_videos
    seconds = seconds.tolist() if isinstance(seconds, Tensor) else seconds
    # Infinite seconds times no frame would be no number.
    seconds = [
        value if frames else 0.0 for value, frames in zip(seconds, frames_of_videos, strict=True)
    ]
    steps = _rounded(seconds, dtype)
    if spec.time_dtype == "int64":
        steps = [*map(float, map(int, steps))]
    if spec.time_order == "seconds":
        scales = [*_rounded(rates, counted)]
    else:
        # The operator multiplies in 32 bits at least.
        wide = dtype if dtype == torch.float64 else torch.float32
        steps = _rounded(_rounded(map(mul, steps, _rounded(rates, wide)), wide), dtype)
    return TimeScale(counted, _rounded(steps, counted), scales)


def steps_of_frames(
    depth: Sequence[int], time_scale: TimeScale
) -> tuple[list[int], list[Sequence[int]]]:
    """Return `extent` and `between`, as `Items` has them, of groups of (V,) frames, at least one.

    The offsets of frames are those of `core.items.temporal_offset`.
    """
    # Of all groups at once. `repeat` ends each group's numbers.
    dtype, steps, scales = time_scale
    numbers = _rounded(range(max(depth)), dtype)
    products = (map(mul, numbers, repeat(*each)) for each in zip(steps, depth, strict=True))
    times = _rounded(chain.from_iterable(products), dtype)
    if any(scale != 1 for scale in scales):
        times = _rounded(map(mul, times, chain.from_iterable(map(repeat, scales, depth))), dtype)
    offsets, stops = [*map(int, times)], [*accumulate(depth)]
    lasts = [*map(sub, stops, repeat(1))]
    between = (*map(sub, offsets[1:], offsets),)
    extent = [offset + 1 for offset in map(offsets.__getitem__, lasts)]
    return extent, [*map(between.__getitem__, map(slice, [0, *stops], lasts))]


def _rounded(values: Iterable[float], dtype: torch.dtype) -> Sequence[float]:
    """Return numbers that a double holds exactly, as numbers of a dtype."""
    if dtype == torch.float64:
        return [*values]
    if dtype == torch.float32:
        return array("f", values)
    exact = torch.tensor([*values], dtype=torch.float64, device="cpu")
    numbers: list[float] = exact.to(dtype).tolist()
    return numbers
