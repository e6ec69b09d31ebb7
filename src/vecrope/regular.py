"""The layout that nearly every prompt has, expanded on a CPU with one addition a token and axis.

A layout is regular where every run of placeholders is exactly one frame, an image's or a video's. Then
no base position is needed: within a grid line, a text run or a masked run each axis has a constant
slope of 0 or 1, and what happens at the start of a line, at the start of a frame and behind a frame
depends on that frame's grid alone. The positions are the cumulative sum of these increments, row by
row. Whatever is not regular (frames that touch, masked tokens inside an image, grids that do not fit)
is left to the segment table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vecrope.modality import VIDEO, in_video
from vecrope.spec import MRopeSpec
from vecrope.stream import Stream


def regular_rope_index(
    stream: Stream, spec: MRopeSpec, image_grid_thw: Tensor | None, video_grid_thw: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Return the (3, N) positions and (B, 1) deltas of a regular layout, or None if it is not one.

    An answer means that the grids are well-formed and fit: they need no further check.
    """
    if len(stream.shape) != 2:
        return None
    num_rows, seq_len = stream.shape
    sizes = _frame_sizes(spec, image_grid_thw, video_grid_thw)
    runs = _placeholder_runs(stream, spec)
    if sizes is None or runs is None or runs.edges.shape[0] != sizes.shape[0]:
        return None
    edges, rows = runs.edges, None
    if num_rows > 1:
        rows = edges[:, 0] // seq_len
    video = runs.video
    if video is None and edges.shape[0]:
        video = in_video(stream, spec, edges[:, 0], None if rows is None else rows * seq_len)
    if video is not None:
        # The grids' order: all images, then all videos.
        order = video.argsort(stable=True)
        edges = edges[order]
        rows = None if rows is None else rows[order]
    num_images = 0 if image_grid_thw is None else image_grid_thw.shape[0]
    num_videos = 0 if video is None else int(video.sum())
    starts, ends = edges.unbind(1)
    lengths = ends - starts
    height, width = sizes.unbind(1)
    if lengths.shape[0] != num_images + num_videos or not torch.equal(lengths, height * width):
        return None

    span = torch.maximum(height, width)
    shift = span - lengths
    if rows is None:
        rope_deltas = shift.sum().view(1, 1)
    else:
        rope_deltas = shift.new_zeros(num_rows).index_add_(0, rows, shift).view(-1, 1)
    if stream.kept is not None and spec.delta_length == "padded":
        rope_deltas += stream.kept.view(stream.shape).sum(1, keepdim=True) - seq_len

    segment = torch.repeat_interleave(height)
    line_widths = width[segment]
    line_starts = (
        line_widths.cumsum(0) - line_widths + (starts - lengths.cumsum(0) + lengths)[segment]
    )
    positions = torch.empty((3, stream.num_tokens), dtype=stream.input_ids.dtype)
    if stream.kept is None:
        positions[:2] = runs.placeholders.logical_not()
        positions[2] = 1
    else:
        positions[:2] = runs.placeholders ^ stream.kept
        positions[2] = stream.kept
    positions[1].index_fill_(0, line_starts, 1)
    positions[2].index_copy_(0, line_starts, (1 - line_widths).to(positions.dtype))
    positions[::2].index_fill_(1, starts, 1)
    # Behind a frame the running position, less one; the wrap to token 0 at the end of the stream
    # and what falls on another row's first token are undone by the line after.
    behind = span - torch.stack((torch.ones_like(span), height, width))
    positions.index_add_(1, ends % stream.num_tokens, behind.to(positions.dtype))
    rows_view = positions.view(3, num_rows, seq_len)
    rows_view[:, :, 0] = (
        0 if stream.kept is None else stream.kept.view(stream.shape)[:, 0].long() - 1
    )
    rows_view.cumsum_(2)
    if stream.kept is not None:
        positions.masked_fill_(stream.kept.logical_not(), spec.padding_value)
    return positions, rope_deltas


@dataclass(frozen=True)
class _PlaceholderRuns:
    placeholders: Tensor  # (N,) bool
    edges: Tensor  # (runs, 2) first token, and first token behind
    video: Tensor | None  # (runs,) bool, where the caller gave types


def _frame_sizes(
    spec: MRopeSpec, image_grid_thw: Tensor | None, video_grid_thw: Tensor | None
) -> Tensor | None:
    """Return (frames, 2) heights and widths in tokens, images first; None if a grid is unsound."""
    sizes = []
    if image_grid_thw is not None and image_grid_thw.shape[0]:
        least, most = image_grid_thw[:, 0].aminmax()
        if int(least) != 1 or int(most) != 1:
            return None
        sizes.append(image_grid_thw[:, 1:])
    if video_grid_thw is not None and video_grid_thw.shape[0]:
        frames = video_grid_thw[:, 0]
        if int(frames.amin()) < 1:
            return None
        sizes.append(video_grid_thw[:, 1:].repeat_interleave(frames, 0))
    if not sizes:
        return torch.empty((0, 2), dtype=torch.int64)
    patches = torch.cat(sizes) if len(sizes) > 1 else sizes[0]
    size = patches // spec.spatial_merge_size
    return size if torch.equal(size.abs() * spec.spatial_merge_size, patches) else None


def _placeholder_runs(stream: Stream, spec: MRopeSpec) -> _PlaceholderRuns | None:
    num_rows, seq_len = stream.shape
    if stream.token_types is None:
        codes = stream.input_ids == spec.image_token_id
    else:
        codes = stream.token_types.to(torch.uint8)
    if stream.kept is not None:
        codes *= stream.kept
    # A column that is no placeholder before each row and one behind the last: a run's two edges
    # always alternate, and no run crosses rows.
    padded = torch.zeros(num_rows * (seq_len + 1) + 1, dtype=codes.dtype)
    padded[:-1].view(num_rows, seq_len + 1)[:, 1:] = codes.view(num_rows, seq_len)
    edges = (padded[1:] != padded[:-1]).nonzero().view(-1)
    video = None
    if stream.token_types is not None:
        if edges.shape[0] % 2:
            return None
        first, behind = padded[edges + 1].view(-1, 2).unbind(1)
        if bool(behind.any()):
            return None
        video = first == VIDEO
    if num_rows > 1:
        edges -= edges // (seq_len + 1)
    return _PlaceholderRuns(codes.bool(), edges.view(-1, 2), video)
