"""The layout that nearly every prompt has, expanded on a CPU with one addition a token and axis.

A layout is regular where every run of placeholders is exactly one frame, an image's or a video's,
or one video that is a block, and no row ends in one. Then no base position is needed: within a grid
line, a text run or a masked run each axis has a constant slope of 0 or 1, and what happens where a
line starts and behind a frame depends on that frame's grid alone. The positions are the cumulative
sum of these increments, row by row. Whatever is not regular (frames that touch, masked tokens
inside an image, grids that do not fit) is left to the segment table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.blocks import Blocks, blocks_of, write_blocks
from vecrope.frames import MASKED, RunTable, find_frame_runs, types_of_ids
from vecrope.spec import MRopeSpec


class OneSize(NamedTuple):
    """The size of all frames, in tokens, and by how much each moves the position."""

    height: int
    width: int
    span: int

    @property
    def area(self) -> int:
        """Tokens of each frame."""
        return self.height * self.width


class Sizes(NamedTuple):
    """The same, frame by frame."""

    height: Tensor  # (F, 1)
    width: Tensor  # (F, 1)
    span: Tensor  # (F, 1)
    tallest: int

    @property
    def area(self) -> Tensor:
        """(F, 1) tokens of each frame."""
        return self.height * self.width


class Frames(NamedTuple):
    """What the grids describe, all images before all videos; a block counts as a frame."""

    num_images: int
    num_video_frames: int
    size: OneSize | Sizes | Blocks


def regular_rope_index(
    input_ids: Tensor,
    spec: MRopeSpec,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    kept: Tensor | None,
    token_types: Tensor | None,
    seconds: Tensor | Sequence[float] | None,
) -> tuple[Tensor, Tensor] | None:
    """Return the positions and deltas of a regular layout, or None if it is not one.

    An answer means that the grids are well-formed and fit: they need no further check.

    Args:
        input_ids: (B, T), on a CPU, at least one token.
        spec: the family's rules.
        image_grid_thw: (num_images, 3), or None.
        video_grid_thw: (num_videos, 3), or None.
        kept: (B, T) bool, True = token; None: every one is.
        token_types: (B, T), to be read instead of the ids.
        seconds: (num_videos,) as `second_per_grid_ts`.

    Returns:
        (3, B, T) in the dtype of `input_ids`, and (B, 1) int64.
    """
    num_rows, seq_len = input_ids.shape
    frames = frames_of(num_rows * seq_len, spec, image_grid_thw, video_grid_thw, seconds)
    if frames is None:
        return None
    positions = input_ids.new_empty((3, num_rows, seq_len))
    announced = spec.marker_rule == "adjacent" and token_types is None
    if token_types is None and spec.marker_rule in ("none", "adjacent"):
        token_types = types_of_ids(input_ids, spec, scratch=positions[0])
    runs = find_frame_runs(
        input_ids,
        spec,
        kept,
        token_types,
        scratch=positions[0],
        expect_video=frames.num_video_frames > 0,
    )
    if runs is None or runs.starts.shape[0] != frames.num_images + frames.num_video_frames:
        return None
    num_video_frames = 0 if runs.is_video is None else int(runs.is_video.sum())
    if num_video_frames != frames.num_video_frames:
        return None
    at, starts, ends = runs.at, runs.starts, runs.ends
    size = frames.size
    if not isinstance(size, OneSize) and runs.is_video is not None and frames.num_images:
        # Into the order of the grids: all images, then all videos.
        order = runs.is_video.argsort(dim=0, stable=True)
        at, starts, ends = at.take(order), starts.take(order), ends.take(order)
    if not torch.equal(starts + size.area, ends):
        return None
    if announced and not _announced(input_ids, spec, starts):
        return None

    # Within a frame time and height stand still from token to token, width does not.
    positions[:2].copy_(runs.text if kept is None else runs.text.logical_and_(kept))
    positions[2] = 1 if kept is None else kept
    tokens = positions.view(3, -1)
    if starts.shape[0]:
        write_frames(tokens, starts, ends, size)
    if kept is None:
        positions[:, :, 0].zero_()
        positions.cumsum_(2)
        return positions, largest_of(positions[0], size, spec).to(torch.int64) - (seq_len - 1)

    next_positions = _step_aside(positions, runs.table, at, size.span, spec.padding_value)
    positions[:, :, 0] = kept[:, 0].logical_not() * spec.padding_value
    positions.cumsum_(2)
    if _outreaches(size, spec):
        reached = (positions[0] + 1).mul_(kept).amax(1, keepdim=True)
        next_positions = torch.maximum(next_positions, reached)
    lengths = seq_len if spec.delta_length == "padded" else kept.sum(1, keepdim=True)
    return positions, next_positions - lengths


def frames_of(
    num_tokens: int,
    spec: MRopeSpec,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    seconds: Tensor | Sequence[float] | None = None,
) -> Frames | None:
    """Return the frames' sizes and numbers, a frame being one token deep if it is not a block.

    None if a grid is not positive, not divisible or larger than the batch, if an image has a
    temporal extent, or if one frame is so much taller than the others that to give each as many
    lines would waste memory.
    """
    images, videos = (
        None if grids is None or not grids.shape[0] else grids
        for grids in (image_grid_thw, video_grid_thw)
    )
    if videos is not None and not spec.separate_frames:
        blocks = blocks_of(num_tokens, spec, images, videos, seconds)
        if blocks is None:
            return None
        return Frames(blocks.num_images, videos.shape[0], blocks)
    if images is not None and videos is not None:
        grids = torch.cat((images, videos))
    elif images is not None:
        grids = images
    elif videos is not None:
        grids = videos
    else:
        return Frames(0, 0, OneSize(1, 1, 1))
    if grids.dtype != torch.int64:
        grids = grids.to(torch.int64)
    num_grids = grids.shape[0]
    if num_grids == 1:
        least = most = grids[0].tolist()
    else:
        least, most = (extreme.tolist() for extreme in torch.aminmax(grids, dim=0))
    merge = spec.spatial_merge_size
    if min(least) < 1 or max(most) > num_tokens * merge:
        return None
    num_images = 0 if images is None else images.shape[0]
    num_frames = num_grids
    if most[0] > 1:
        depths = grids[:, 0].tolist()
        if images is not None and max(depths[:num_images]) > 1:
            return None
        num_frames = sum(depths)
    num_video_frames = num_frames - num_images
    _, height, width = most
    if least[1:] == most[1:]:
        if height % merge or width % merge:
            return None
        height, width = height // merge, width // merge
        return Frames(num_images, num_video_frames, OneSize(height, width, max(height, width)))
    tallest = height // merge
    if 2 * num_frames * tallest > num_tokens:
        return None
    patches = grids[:, 1:]
    sizes = patches // merge
    if not torch.equal(sizes * merge, patches):
        return None
    if most[0] > 1:
        sizes = sizes.repeat_interleave(grids[:, 0], 0, output_size=num_frames)
    heights, widths = sizes[:, :1], sizes[:, 1:]
    spans = torch.maximum(heights, widths)
    return Frames(num_images, num_video_frames, Sizes(heights, widths, spans, tallest))


def write_frames(
    tokens: Tensor, starts: Tensor, ends: Tensor, size: OneSize | Sizes | Blocks
) -> None:
    """Write the increments (3, B T) at the lines of each frame and behind it."""
    if isinstance(size, Blocks):
        write_blocks(tokens, starts, ends, size)
        return
    if isinstance(size, Sizes):
        height, width, span, tallest = size
        number = torch.arange(tallest, device=starts.device)
        # A frame of fewer lines than the tallest has its last one several times.
        lines = torch.addcmul(starts, torch.minimum(number, height - 1), width)
        back = (1 - width.expand_as(lines)).to(tokens.dtype)
        behind = torch.cat((span - 1, span - height, span - width), 1).t().to(tokens.dtype)
    else:
        area = size.height * size.width
        lines = starts + torch.arange(0, area, size.width, device=starts.device)
        back = torch.full_like(lines, 1 - size.width, dtype=tokens.dtype)
        steps = [[size.span - 1], [size.span - size.height], [size.span - size.width]]
        behind = tokens.new_tensor(steps).expand(3, starts.shape[0])
    lines = lines.view(-1)
    # Not index_fill_, which is slower.
    tokens[1].scatter_(0, lines, torch.ones_like(lines, dtype=tokens.dtype))
    tokens[2].scatter_(0, lines, back.view(-1))
    tokens.index_fill_(1, starts.view(-1), 1)
    tokens.index_add_(1, ends.view(-1), behind)


def largest_of(temporal: Tensor, size: OneSize | Sizes | Blocks, spec: MRopeSpec) -> Tensor:
    """Return each row's largest position, (B, 1), by (B, T) of which no row ends in a frame."""
    return temporal.amax(1, keepdim=True) if _outreaches(size, spec) else temporal[:, -1:]


def _outreaches(size: OneSize | Sizes | Blocks, spec: MRopeSpec) -> bool:
    """Say whether a block reaches further than it moves the position."""
    if not isinstance(size, Blocks) or spec.span_rule == "thw":
        return False
    return bool((size.reach > size.span).any())


def _announced(input_ids: Tensor, spec: MRopeSpec, starts: Tensor) -> bool:
    """Say whether the marker that the spec asks for stands right before each frame, in its row."""
    if not starts.shape[0]:
        return True
    if not int((starts % input_ids.shape[1]).amin()):
        return False
    before = input_ids.take(starts.view(-1) - 1)
    return before.tolist().count(spec.vision_start_token_id) == starts.shape[0]


def _step_aside(
    positions: Tensor, table: RunTable, at: Tensor, span: Tensor | int, padding_value: int
) -> Tensor:
    """Move all axes to `padding_value` where a masked run starts, and back where it ends.

    To fill masked tokens one by one takes longer. Each row's first increment is left undefined.

    Args:
        positions: (3, B, T) increments.
        table: all runs.
        at: (F, 1) row of the table of each frame.
        span: by how much a frame moves the position, (F, 1) or one for all.
        padding_value: the position of masked tokens.

    Returns:
        (B, 1) int64, the position that would come next in each row.
    """
    _, num_rows, seq_len = positions.shape
    columns = int(num_rows > 1)
    masked = table.values == MASKED
    moves = table.lengths.masked_fill(masked, 0)
    moves[at] = span
    # What all runs so far have moved the position by, and what they have up to where rows end.
    moved = moves.cumsum(0)
    stride = seq_len + columns
    row_ends = torch.arange(stride, num_rows * stride + 1, stride, device=moves.device)
    # The run that a row ends in is of text where it goes on into the next row.
    run = torch.searchsorted(table.ends, row_ends)
    at_rows = torch.cat((moved.new_zeros(1), (moved - table.ends).take(run).add_(row_ends)))

    at = masked.nonzero().view(-1)
    ends = table.ends.index_select(0, at)
    starts = ends - table.lengths.index_select(0, at)
    rows = starts // stride
    # Masked tokens would stand at the position before the next.
    aside = (at_rows.take(rows) - moved.take(at) + (padding_value + 1)).to(positions.dtype)
    aside = aside.expand(3, -1)
    if columns:
        starts -= rows
        ends -= rows
    tokens = positions.view(3, -1)
    tokens.index_add_(1, starts, aside)
    # Behind a row's end this changes only the first token of a row, which is set later.
    tokens.index_add_(1, ends % tokens.shape[1], aside, alpha=-1)
    return (at_rows.diff() - columns).unsqueeze(1)
