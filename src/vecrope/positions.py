"""The segment table expanded to the positions of any tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vecrope.items import temporal_offset
from vecrope.modality import MASKED, TEXT
from vecrope.segments import Segments


def positions_at(segments: Segments, index: Tensor) -> Tensor:
    """Return the (3, ...) positions of the tokens at `index` (...), each from its segment's row."""
    segment = torch.searchsorted(segments.starts, index, right=True) - 1
    origin, *layout = _columns(segments)[:, segment].unbind()
    pace = None if segments.pace is None else segments.pace[:, segment]
    return _locate(index - origin, layout, pace)


def all_positions(segments: Segments, dtype: torch.dtype) -> Tensor:
    """Return the (3, N) positions of all tokens of a table of exact size.

    Within a text run, or a line of a grid, each axis has a constant slope of 0 or 1: the positions
    are the cumulative sum of these, and of what differs where a line starts. That takes a fraction
    of the time of `positions_at`, which divides token by token.
    """
    used = segments.lengths > 0
    place = segments.starts - segments.origin
    text, masked = segments.modality == TEXT, segments.modality == MASKED
    visual = ~(text | masked) & used
    first_row = place // segments.width
    last_row = (place + segments.lengths - 1) // segments.width
    num_lines = torch.where(visual, last_row - first_row, 0) + used
    ends = num_lines.cumsum(0)
    total = int(ends[-1])
    segment = torch.repeat_interleave(num_lines, output_size=total)
    line = torch.arange(total, device=ends.device) - (ends - num_lines)[segment]
    origin, *layout = _columns(segments)[:, segment].unbind()
    row_start = origin + (first_row[segment] + line) * layout[1]
    starts = torch.maximum(segments.starts[segment], row_start)
    pace = None if segments.pace is None else segments.pace[:, segment]
    at_starts = _locate(starts - origin, layout, pace)

    slopes = torch.stack((text, text, ~masked)).to(at_starts.dtype)
    at_ends = at_starts[:, :-1] + slopes[:, segment[:-1]] * (starts[1:] - starts[:-1] - 1)
    steps = torch.cat((at_starts[:, :1], at_starts[:, 1:] - at_ends), 1).to(dtype)
    num_tokens = int(segments.starts[-1] + segments.lengths[-1])
    positions = segments.starts.new_empty((3, num_tokens), dtype=dtype)
    in_text = text.to(dtype).repeat_interleave(segments.lengths, output_size=num_tokens)
    positions[:2] = in_text
    if bool(masked.any()):
        kept = (~masked).to(dtype)
        positions[2] = kept.repeat_interleave(segments.lengths, output_size=num_tokens)
    else:
        positions[2].fill_(1)
    positions[:, starts] = steps
    return positions.cumsum_(1)


def _columns(segments: Segments) -> Tensor:
    return torch.stack(
        (
            segments.origin,
            segments.base,
            segments.width,
            segments.height,
            segments.in_group,
            segments.span,
        )
    )


def _locate(place: Tensor, layout: Sequence[Tensor], pace: Tensor | None) -> Tensor:
    """Return the (3, ...) positions of places within items, counted off row by row."""
    base, width, height, in_group, span = layout
    row = place // width
    frame = row // height
    group = frame // in_group
    anchor = base + group * span
    time = frame - group * in_group
    if pace is not None:
        time = temporal_offset(time, pace)
    return torch.stack(
        (
            anchor + time,
            anchor + (row - frame * height),
            anchor + (place - row * width),
        )
    )
