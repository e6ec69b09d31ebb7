"""The grids as numbers on the host: how many groups each item has, and what each holds."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate, chain, repeat
from math import isfinite
from operator import floordiv, mod, mul
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.core.items import has_pace, temporal_offset, video_pace
from vecrope.core.modality import IMAGE
from vecrope.spec import MRopeSpec

_MAX_TOKENS = 2**30


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
    # (2, V) factors of the videos, as `core.items.Items.pace` has them, where some have a next
    # frame that is spaced in time.
    pace: Tensor | None

    def of_groups(self, kind: int) -> Sequence[int]:
        """Return the item of each group of images, or of videos."""
        first, stop = (0, self.num_images) if kind == IMAGE else (self.num_images, len(self.groups))
        return [*chain.from_iterable(map(repeat, range(first, stop), self.groups[first:stop]))]


def read_items(
    images: Tensor | None,
    videos: Tensor | None,
    spec: MRopeSpec,
    seconds: Tensor | Sequence[float] | None,
    *,
    lenient: bool,
) -> Items | None:
    """Return the items, or None if a grid or the seconds of a video are not sound.

    Args:
        images: (num_images, 3) on any device; read.
        videos: (num_videos, 3) likewise.
        spec: the family's rules.
        seconds: (num_videos,) as `second_per_grid_ts`.
        lenient: whether sides that the merge size does not divide are rounded down.
    """
    rows = [] if images is None else images.tolist()
    num_images = len(rows)
    rows += [] if videos is None else videos.tolist()
    if not rows:
        return Items(0, [], [], [], [], [], [], [], None, None)
    merge = spec.spatial_merge_size
    frames, tall, wide = map(list, zip(*rows, strict=True))
    zeros = min(map(min, rows)) < 1
    if zeros and any(min(row) < 1 for row in rows if any(row)):
        return None
    if lenient:
        if any(0 < side < merge for side in chain(tall, wide)):
            return None
    elif any(map(mod, chain(tall, wide), repeat(merge))):
        return None
    height, width = ([*map(floordiv, sides, repeat(merge))] for sides in (tall, wide))
    if spec.temporal_merge_size > 1:
        in_video = frames[num_images:]
        frames[num_images:] = map(floordiv, in_video, repeat(spec.temporal_merge_size))
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
    extent, offsets, pace = depth, None, None
    if has_pace(spec):
        found = _offsets(depth, num_images, videos, spec, seconds)
        if found is None:
            return None
        offsets, pace = found
        extent = [steps[-1] + 1 if len(steps) else 1 for steps in offsets]
    advance = [*map(max, height, width)]
    if spec.span_rule == "thw":
        advance = [*map(max, advance, extent)]
    return Items(num_images, groups, depth, height, width, area, advance, extent, offsets, pace)


def _offsets(
    depth: list[int],
    num_images: int,
    videos: Tensor | None,
    spec: MRopeSpec,
    seconds: Tensor | Sequence[float] | None,
) -> tuple[list[Sequence[int]], Tensor | None] | None:
    """Return `Items.offsets` and `Items.pace`, or None for unsound seconds."""
    offsets: list[Sequence[int]] = [*map(range, depth)]
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
    pace = video_pace(len(in_video), spec, seconds, torch.device("cpu"))
    offsets[num_images:] = frame_offsets(in_video, pace)
    return offsets, pace


def frame_offsets(depth: list[int], pace: Tensor) -> list[Sequence[int]]:
    """Return the temporal offsets of the frames of groups of some frames, by their `pace` (2, V).

    Of all at once: the products are rounded as the upstreams round theirs.
    """
    group, frame = (
        torch.frombuffer(array("q", chain.from_iterable(numbers)), dtype=torch.int64)
        for numbers in (map(repeat, range(len(depth)), depth), map(range, depth))
    )
    taken = temporal_offset(frame, pace[:, group]).tolist()
    stops = [*accumulate(depth)]
    return [*map(taken.__getitem__, map(slice, [0, *stops[:-1]], stops))]
