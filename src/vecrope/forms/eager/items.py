"""The grids as numbers on the host: how many groups each item has, and what each holds."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, repeat
from math import isfinite
from operator import mul
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.core.items import has_time_scale, video_time_scale
from vecrope.core.modality import IMAGE, VIDEO
from vecrope.spec import MRopeSpec

_MAX_TOKENS = 2**30
_FIRST: Sequence[int] = (0,)


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
    # Temporal offsets of the frames of a group; None: every frame is at its number.
    offsets: list[Sequence[int]] | None
    # (2, V) factors of the videos, as `core.items.Items.time_scale` has them, where some have a
    # next frame that is spaced in time.
    time_scale: Tensor | None

    def of_groups(self, kind: int) -> Sequence[int]:
        """Return the item of each group of images, or of videos."""
        first, stop = (0, self.num_images) if kind == IMAGE else (self.num_images, len(self.groups))
        return [*chain.from_iterable(map(repeat, range(first, stop), self.groups[first:stop]))]

    def in_order(self, kinds: Iterable[int]) -> list[int]:
        """Return the item of each group in the order of the batch, by kind; up to one too many."""
        of_kind = {kind: iter(self.of_groups(kind)) for kind in (IMAGE, VIDEO)}
        # An exhausted iterator ends the list.
        return [*map(next, map(of_kind.__getitem__, kinds))]


def read_items(
    images: Tensor | None,
    videos: Tensor | None,
    spec: MRopeSpec,
    seconds: Tensor | Sequence[float] | None,
    *,
    round_grid_sides: bool,
) -> Items | None:
    """Return the items, or None if a grid or the seconds of a video are not sound.

    Args:
        images: (num_images, 3) on any device; read.
        videos: (num_videos, 3) likewise.
        spec: the family's rules.
        seconds: (num_videos,) as `second_per_grid_ts`.
        round_grid_sides: whether sides that the merge size does not divide are rounded down.
    """
    rows = [] if images is None else images.tolist()
    num_images = len(rows)
    rows += [] if videos is None else videos.tolist()
    if not rows:
        return Items(0, [], [], [], [], [], [], [], None, None)
    grids = read_grids(rows, num_images, spec, round_grid_sides=round_grid_sides)
    if grids is None:
        return None
    groups, depth, height, width, area = grids
    extent, offsets, time_scale = depth, None, None
    if has_time_scale(spec):
        found = _offsets(depth, num_images, videos, spec, seconds)
        if found is None:
            return None
        offsets, time_scale = found
        extent = [steps[-1] + 1 if len(steps) else 1 for steps in offsets]
    sizes = (height, width, extent) if spec.span_rule == "thw" else (height, width)
    advance = [*map(max, *sizes)]
    return Items(
        num_images, groups, depth, height, width, area, advance, extent, offsets, time_scale
    )


def read_grids(
    rows: Sequence[Sequence[int]], num_images: int, spec: MRopeSpec, *, round_grid_sides: bool
) -> tuple[list[int], list[int], list[int], list[int], list[int]] | None:
    """Return groups, depth, height, width and area, as `Items` has them, of at least one grid.

    Args:
        rows: the grids of images, then those of videos.
        num_images: how many are of images.
        spec: the family's rules.
        round_grid_sides: as for `read_items`.

    Returns:
        None if a grid is not sound.
    """
    merge = spec.spatial_merge_size
    frames, tall, wide = map(list, zip(*rows, strict=True))
    zeros = min(min(frames), min(tall), min(wide)) < 1
    if zeros and any(min(row) < 1 for row in rows if any(row)):
        return None
    sides = {*tall, *wide}
    if any(0 < side < merge if round_grid_sides else side % merge for side in sides):
        return None
    height, width = ([side // merge for side in of_items] for of_items in (tall, wide))
    if spec.temporal_merge_size > 1:
        in_video = frames[num_images:]
        frames[num_images:] = [number // spec.temporal_merge_size for number in in_video]
        if any(more and not less for more, less in zip(in_video, frames[num_images:], strict=True)):
            return None
    if not spec.multi_frame_images and max(frames[:num_images], default=1) > 1:
        return None
    depth, groups = frames, [1] * len(rows)
    if spec.separate_frames:
        num_videos = len(rows) - num_images
        depth = frames[:num_images] + [1] * num_videos
        groups[num_images:] = frames[num_images:]
    area = [*map(mul, map(mul, depth, height), width)]
    if zeros:
        groups = [number if tokens else 0 for number, tokens in zip(groups, area, strict=True)]
    if sum(map(mul, groups, area)) >= _MAX_TOKENS:
        return None
    return groups, depth, height, width, area


def _offsets(
    depth: list[int],
    num_images: int,
    videos: Tensor | None,
    spec: MRopeSpec,
    seconds: Tensor | Sequence[float] | None,
) -> tuple[list[Sequence[int]], Tensor | None] | None:
    """Return `Items.offsets` and `Items.time_scale`, or None for unsound seconds."""
    offsets = [_FIRST if frames == 1 else range(frames) for frames in depth]
    if spec.image_time == "none":
        offsets[:num_images] = ([0] * frames for frames in depth[:num_images])
    if spec.video_time != "seconds" or len(depth) == num_images or videos is None:
        return offsets, None
    if seconds is None and spec.default_seconds is None:
        return None
    in_video = depth[num_images:]
    if seconds is not None:
        steps = seconds.tolist() if isinstance(seconds, Tensor) else seconds
        rate = spec.tokens_per_second
        assert rate is not None
        if not all(isfinite(step) and step >= 0 for step in steps):
            return None
        if not sum(map(mul, map(mul, steps, in_video), repeat(rate))) < _MAX_TOKENS:
            return None
    if max(in_video) <= 1:
        return offsets, None
    time_scale = video_time_scale(len(in_video), spec, seconds, torch.device("cpu"))
    try:
        offsets[num_images:] = frame_offsets(in_video, time_scale)
    except OverflowError:  # seconds of 16 bits have made an infinite number
        return None
    return offsets, time_scale


def frame_offsets(depth: Sequence[int], time_scale: Tensor) -> list[Sequence[int]]:
    """Return what `core.items.temporal_offset` does for the frames of groups of some frames.

    Args:
        depth: (V,) frames of each group.
        time_scale: (2, V) factors, in the precision to which each product is rounded.
    """
    # Of all groups at once. `repeat` ends each group's numbers.
    dtype, (steps, scales) = time_scale.dtype, time_scale.tolist()
    numbers = _rounded(range(max(depth)), dtype)
    products = (map(mul, numbers, repeat(*each)) for each in zip(steps, depth, strict=True))
    times = _rounded(chain.from_iterable(products), dtype)
    if any(scale != 1 for scale in scales):
        times = _rounded(map(mul, times, chain.from_iterable(map(repeat, scales, depth))), dtype)
    taken, stops = [*map(int, times)], [*accumulate(depth)]
    return [*map(taken.__getitem__, map(slice, [0, *stops[:-1]], stops))]


def _rounded(values: Iterable[float], dtype: torch.dtype) -> Sequence[float]:
    """Return numbers that a double holds exactly, as numbers of a dtype."""
    if dtype == torch.float64:
        return [*values]
    if dtype == torch.float32:
        return array("f", values)
    exact = torch.tensor([*values], dtype=torch.float64, device="cpu")
    numbers: list[float] = exact.to(dtype).tolist()
    return numbers
