"""Isaac: the cells of an image are counted from 0, and what follows it is no plain sum."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core import faults
from vecrope.core.items import make_items
from vecrope.core.modality import IMAGE, TEXT, token_codes
from vecrope.core.stream import Stream
from vecrope.inputs import Inputs
from vecrope.own_rules.common import (
    grids_of,
    invalidate,
    open_stream,
    positions_dtype,
    positions_of,
    refuse_videos,
)
from vecrope.segments import Segments, segment_stream
from vecrope.spec import MRopeSpec

# More than any position: what sets the running largest values of one row apart from the next's.
_ROW_STEP = 2**32


def isaac_rope_index(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> tuple[Tensor, Tensor]:
    """Return the positions of `vecrope.get_rope_index` by the rule `Isaac`.

    The tokens of an image have one temporal position, the running one, and as height and width
    their row and column, counted from 0. What follows it goes on past the largest of the three,
    unless that is the end of the row: the text behind the last image goes on past its temporal
    position.

    Returns:
        `position_ids` (3, B, T) in the dtype that the spec names, or (3, N); and `rope_deltas`
        (B, 1) int64, or (num_sequences, 1).

    Raises:
        ValueError: with `validate`, if placeholders and grids do not fit each other.

    The rule is that of vLLM's `IsaacForConditionalGeneration.get_mrope_input_positions`.
    """
    refuse_videos(inputs, spec)
    stream = open_stream(inputs, spec, validate=validate)
    images = grids_of(stream, inputs.image_grid_thw)
    tracing = torch.compiler.is_compiling()
    if validate and not tracing:
        faults.check_grids(images, images[:0], spec)
    items = make_items(images, images[:0], spec, stream.index_dtype)
    dtype = positions_dtype(inputs, spec)
    if stream.num_tokens == 0:
        if validate and not tracing:
            faults.check_none_left_over(items)
        rope_deltas = torch.zeros((stream.num_rows, 1), dtype=torch.int64, device=images.device)
        return torch.empty((3, *stream.shape), dtype=dtype, device=images.device), rope_deltas
    segments = segment_stream(stream, spec, items, None)
    if validate and not tracing:
        faults.check_layout(items, segments, images, images[:0], spec, None)
    base, rope_deltas = _number(stream, segments)
    base = torch.where(
        (segments.modality == TEXT) | (segments.modality == IMAGE), base, spec.padding_value
    )
    positions = positions_of(stream, replace(segments, base=base))
    cells = positions[1:] - positions[0]
    image = token_codes(stream, spec) == IMAGE
    positions = torch.cat((positions[:1], torch.where(image, cells, positions[1:])))
    position_ids = positions.to(dtype).view(3, *stream.shape)
    if validate and tracing:
        return invalidate(faults.layout_fault(items, segments), position_ids, rope_deltas)
    return position_ids, rope_deltas


def _number(stream: Stream, segments: Segments) -> tuple[Tensor, Tensor]:
    """Return the (S,) positions at which segments start, and the (B, 1) int64 deltas.

    If every image moved the running position by 1, a segment would start at its `plain` position.
    An image of a side that reaches further lifts all behind it by the difference, unless an earlier
    one has done so already: the lift is a running maximum.
    """
    rows = segments.rows.long()
    text, image = segments.modality == TEXT, segments.modality == IMAGE
    used = segments.lengths > 0
    first = image & used & (segments.starts == segments.origin)
    lengths = segments.lengths.long()
    steps = torch.stack((torch.where(text, lengths, 0) + first, first, lengths * (text | image)))
    sums = pad(steps.cumsum(1), (1, 0))
    at_rows = sums[:, torch.searchsorted(segments.starts, stream.row_bounds)]
    in_rows = at_rows[:, 1:] - at_rows[:, :-1]
    plain = sums[0, :-1] - at_rows[0, rows]

    side = torch.maximum(segments.height, segments.width).long()
    lift = _running_maximum(torch.where(first, side - 1 - plain, 0).clamp(min=0), rows)
    before = pad(lift[:-1], (1, 0)).masked_fill(rows != pad(rows[:-1], (1, 0), value=-1), 0)
    at_image = _running_maximum(before.masked_fill(~first, 0), rows)
    last = sums[1, 1:] - at_rows[1, rows] == in_rows[1, rows]
    base = plain + torch.where(image | last, at_image, lift)
    # The rest of an image that masked tokens interrupt.
    base = base - (image & ~first).long()

    reach = torch.where(image, torch.maximum(base + 1, side), base + lengths)
    reach = reach.masked_fill(~used | ~(text | image), 0)
    row_end = torch.zeros_like(in_rows[0]).scatter_reduce(0, rows, reach, "amax")
    return base.to(segments.base.dtype), (row_end - in_rows[2]).unsqueeze(1)


def _running_maximum(values: Tensor, rows: Tensor) -> Tensor:
    """Return the largest of `values` (S,), none negative, up to each of them in its row."""
    apart = rows * _ROW_STEP
    return (values + apart).cummax(0).values - apart
