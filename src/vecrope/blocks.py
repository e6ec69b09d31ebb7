"""Videos that are blocks, as what their lines add to the positions: the exact form on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.core.items import temporal_offset, video_pace
from vecrope.spec import MRopeSpec

_MAX_OFFSET = 2**30


class Blocks(NamedTuple):
    """The sizes of F blocks in tokens, all images before all videos, and how each moves on."""

    depth: Tensor  # (F, 1)
    height: Tensor  # (F, 1)
    width: Tensor  # (F, 1)
    span: Tensor  # (F, 1)
    reach: Tensor  # (F, 1) positions from a block's first to behind its last, on the temporal axis
    pace: Tensor | None  # (2, F) see `vecrope.core.items.Items`
    num_images: int

    @property
    def area(self) -> Tensor:
        """(F, 1) tokens of each block."""
        return self.depth * self.height * self.width


def blocks_of(
    num_tokens: int,
    spec: MRopeSpec,
    images: Tensor | None,
    videos: Tensor,
    seconds: Tensor | Sequence[float] | None,
) -> Blocks | None:
    """Return images of one frame, and videos as blocks; None if a size or a time is not sound.

    Args:
        num_tokens: of the batch.
        spec: of a family whose videos are blocks.
        images: (num_images, 3) in patches, or None.
        videos: (num_videos, 3), at least one.
        seconds: (num_videos,) as `second_per_grid_ts`.
    """
    merge, temporal_merge = spec.spatial_merge_size, spec.temporal_merge_size
    grids = videos if images is None else torch.cat((images, videos))
    num_images = 0 if images is None else images.shape[0]
    # Numbers on a CPU are read faster than a tensor operator is dispatched.
    depths, heights, widths = zip(*grids.tolist(), strict=True)
    sides = heights + widths
    if min(depths) < 1 or min(sides) < 1 or any(map(merge.__rmod__, sides)):
        return None
    if max(depths) > num_tokens * temporal_merge or max(sides) > num_tokens * merge:
        return None
    if max(depths[:num_images], default=1) > 1:
        return None
    grids = grids.to(torch.int64)
    depth, sizes = grids[:, :1], grids[:, 1:] // merge
    if temporal_merge > 1:
        depth = depth // temporal_merge
        depth[:num_images] = 1
    pace, reach = None, depth
    if spec.video_time == "seconds":
        if not seconds_are_sound(spec, seconds, max(depths)):
            return None
        pace = video_pace(videos.shape[0], spec, seconds, videos.device)
        if num_images:
            # An image has one frame, at 0 whatever the factors.
            pace = torch.cat((pace.new_ones((2, num_images)), pace), 1)
        reach = temporal_offset(depth - 1, pace.unsqueeze(2)) + 1
    height, width = sizes[:, :1], sizes[:, 1:]
    span = torch.maximum(height, width)
    if spec.span_rule == "thw":
        span = torch.maximum(span, reach)
    return Blocks(depth, height, width, span, reach, pace, num_images)


def write_blocks(tokens: Tensor, starts: Tensor, ends: Tensor, blocks: Blocks) -> None:
    """Write the increments (3, N) at the lines of each block and behind it.

    Args:
        tokens: (3, N), 0 at placeholders on the first two axes, 1 elsewhere.
        starts: (F, 1) token index of each block, in the order of `blocks`.
        ends: (F, 1) first token behind.
        blocks: their sizes.
    """
    depth, height, width, span, reach, pace, _ = blocks
    dtype = tokens.dtype
    num_lines = (depth * height).view(-1)
    line_ends = num_lines.cumsum(0)
    total = int(line_ends[-1])
    block = torch.repeat_interleave(num_lines, output_size=total)
    columns = torch.cat((starts, line_ends.unsqueeze(1) - depth * height, height, width), 1)
    start, first, height_of, width_of = columns[block].unbind(1)
    line = torch.arange(total, device=starts.device) - first
    at = torch.addcmul(start, line, width_of)
    frame = line // height_of
    begins = frame * height_of == line
    step = torch.ones_like(frame)
    if pace is not None:
        pace = pace[:, block]
        step = temporal_offset(frame, pace) - temporal_offset(frame - 1, pace)
    tokens[0].scatter_(0, at, (step * begins).to(dtype))
    tokens[1].scatter_(0, at, (1 - height_of * begins).to(dtype))
    tokens[2].scatter_(0, at, (1 - width_of).to(dtype))
    tokens.index_fill_(1, starts.view(-1), 1)
    behind = torch.cat((span - reach, span - height, span - width), 1).t().to(dtype)
    tokens.index_add_(1, ends.view(-1), behind)


def seconds_are_sound(
    spec: MRopeSpec, seconds: Tensor | Sequence[float] | None, num_frames: int
) -> bool:
    """Say whether the seconds of videos are there where needed, finite, and not too many.

    Args:
        spec: of a family that spaces videos in time.
        seconds: (num_videos,) on a CPU, of at least one video, or None.
        num_frames: the most frames of a video.
    """
    if seconds is None:
        return spec.default_seconds is not None
    assert spec.tokens_per_second is not None
    values = seconds.tolist() if isinstance(seconds, Tensor) else seconds
    if not all(map(isfinite, values)) or min(values) < 0:
        return False
    return sum(values) * spec.tokens_per_second * num_frames < _MAX_OFFSET
