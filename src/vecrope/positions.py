"""The segment table expanded to the positions of any tokens, or of all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.core.items import temporal_offset
from vecrope.segments import Segments


class Layout(NamedTuple):
    """What of the segment table the positions follow from; see `Segments`.

    A text run is a sequence of 1 x 1 frames of span 1, and a masked run the same of span 0.
    """

    starts: Tensor  # (S,) ascending token indices; N for the unused rows of a static table
    # (6, S): token index that place 0 of the item would have, position of its first group, columns,
    # rows, frames in a group, and how far a group moves the running position.
    table: Tensor
    pace: Tensor | None  # (2, S) see Items


def layout_of(segments: Segments) -> Layout:
    """Return what of a segment table the positions follow from."""
    columns = (
        segments.origin,
        segments.base,
        segments.width,
        segments.height,
        segments.in_group,
        segments.span,
    )
    return Layout(segments.starts, torch.stack(columns), segments.pace)


def positions_at(layout: Layout, index: Tensor) -> Tensor:
    """Return the (3, ...) positions of the tokens at `index` (...), each from its segment's row."""
    segment = torch.searchsorted(layout.starts, index, right=True) - 1
    return _locate(layout, segment, index)


def all_positions(layout: Layout, num_tokens: int, dtype: torch.dtype) -> Tensor:
    """Return the (3, N) positions of all tokens; reads values, so that it synchronises.

    Within a text run, or a line of a grid, each axis has a constant slope of 0 or 1: the positions
    are the cumulative sum of these, and of what differs where a line starts. That takes a fraction
    of the time of `positions_at`, which divides token by token.
    """
    starts, (origin, _, width, height, in_group, span), _ = layout
    lengths = torch.cat((starts[1:], starts.new_full((1,), num_tokens))) - starts
    used = lengths > 0
    masked = span == 0
    text = (width * height * in_group == 1) & (span == 1)
    place = starts - origin
    first_row = place // width
    last_row = (place + lengths - 1) // width
    num_lines = torch.where(text | masked | ~used, 0, last_row - first_row) + used
    ends = num_lines.cumsum(0)
    total = int(ends[-1])
    segment = torch.repeat_interleave(num_lines, output_size=total)
    line = torch.arange(total, device=ends.device) - (ends - num_lines)[segment]
    row_start = origin[segment] + (first_row[segment] + line) * width[segment]
    at = torch.maximum(starts[segment], row_start)
    at_starts = _locate(layout, segment, at)

    slopes = torch.stack((text, text, ~masked))
    at_ends = at_starts[:, :-1] + slopes[:, segment[:-1]] * (at[1:] - at[:-1] - 1)
    steps = torch.cat((at_starts[:, :1], at_starts[:, 1:] - at_ends), 1).to(dtype)
    positions = starts.new_empty((3, num_tokens), dtype=dtype)
    _write_slopes(positions[:2], text, starts, lengths)
    _write_slopes(positions[2:], ~masked, starts, lengths)
    # Three times over one axis, which is faster than once over all three.
    at = at.long()
    for axis in range(3):
        positions[axis].scatter_(0, at, steps[axis])
    return positions.cumsum_(1)


def _write_slopes(axes: Tensor, rising: Tensor, starts: Tensor, lengths: Tensor) -> None:
    """Write 1 to `axes` (n, N) at the tokens of segments that are `rising` (S,), 0 at others.

    Only the rarer of the two are written one by one.
    """
    num_tokens = axes.shape[1]
    num_rising = int((rising * lengths).sum())
    mostly = 2 * num_rising >= num_tokens
    axes.fill_(mostly)
    if num_rising in (0, num_tokens):
        return
    rare = (rising != mostly).nonzero().view(-1)
    total = num_tokens - num_rising if mostly else num_rising
    fill_runs(axes, starts[rare], lengths[rare], total, not mostly)


def fill_runs(axes: Tensor, starts: Tensor, lengths: Tensor, total: int, value: int) -> None:
    """Write `value` to `axes` (n, N) at the `total` tokens of runs (R,)."""
    shift = starts - (lengths.cumsum(0) - lengths)
    index = torch.arange(total, device=starts.device)
    index += shift.repeat_interleave(lengths, output_size=total)
    axes.index_fill_(1, index, value)


def _locate(layout: Layout, segment: Tensor, index: Tensor) -> Tensor:
    """Return the (3, ...) positions of tokens of known segments, counted off row by row."""
    origin, base, width, height, in_group, span = layout.table[:, segment].unbind()
    place = index - origin
    row = place // width
    frame = row // height
    group = frame // in_group
    anchor = base + group * span
    time = frame - group * in_group
    if layout.pace is not None:
        time = temporal_offset(time, layout.pace[:, segment])
    return torch.stack(
        (
            anchor + time,
            anchor + (row - frame * height),
            anchor + (place - row * width),
        )
    )
