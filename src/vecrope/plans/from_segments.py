"""Groups and locations from a table of segments."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope.core import faults
from vecrope.core.items import Items, make_items
from vecrope.core.modality import IMAGE, MASKED, VIDEO
from vecrope.core.search import search, spread
from vecrope.core.stream import Stream, make_stream
from vecrope.plans.entries import Groups
from vecrope.plans.locations import Locations
from vecrope.positions import all_positions, layout_of, positions_at
from vecrope.prepare import Prepared
from vecrope.segments import Segments, segment_stream
from vecrope.spec import MRopeSpec


def groups_of_segments(segments: Segments, items: Items) -> Groups:
    """Return the groups of a table of exactly as many segments as there are; reads values."""
    modality, lengths = segments.modality, segments.lengths
    visual = (((modality == IMAGE) | (modality == VIDEO)) & (lengths > 0)).nonzero().view(-1)
    start, length, origin, height, width, frames, advance, item = (
        column[visual].long()
        for column in (
            segments.starts,
            lengths,
            segments.origin,
            segments.height,
            segments.width,
            segments.in_group,
            segments.span,
            segments.items,
        )
    )
    area = frames * height * width
    place = start - origin
    first = place // area
    numbers = (place + length - 1) // area - first + 1
    total = int(numbers.sum())
    of = spread(numbers, total)
    number = torch.arange(total, device="cpu") - (numbers.cumsum(0) - numbers)[of] + first[of]
    group_start = origin[of] + number * area[of]
    begin = torch.maximum(start[of], group_start)
    end = torch.minimum((start + length)[of], group_start + area[of])
    scale = torch.empty((0, total)) if items.pace is None else items.pace[:, item][:, of]
    before = begin - group_start
    sizes = (height, width, advance, items.extent[item].long())
    return Groups(begin, end - begin, before, *(size[of] for size in sizes), scale)


def locations_of_segments(stream: Stream, segments: Segments) -> Locations:
    """Return where each token stands; reads no value."""
    index = torch.arange(stream.num_tokens, dtype=stream.index_dtype, device=segments.starts.device)
    segment = torch.searchsorted(segments.starts, index, right=True) - 1
    modality = segments.modality[segment]
    in_group = (modality == IMAGE) | (modality == VIDEO)
    height, width = segments.height[segment], segments.width[segment]
    area = height * width * segments.in_group[segment]
    place = (index - segments.origin[segment]) % area
    advance = segments.span[segment]
    moves = torch.where(in_group, torch.where(place == 0, advance, 0), (modality != MASKED).to(advance.dtype))
    total = moves.cumsum(0)
    begin = stream.row_bounds[stream.row_of(index)]
    running = total - (total - moves)[begin]
    columns = torch.stack((place, area, height, width, advance))
    neutral = columns.new_ones(columns.shape)
    neutral[:2].fill_(0)
    neutral[4].fill_(0)
    scale = segments.starts.new_empty((0, stream.num_tokens), dtype=torch.float32)
    if segments.pace is not None:
        scale = segments.pace[:, segment]
    return Locations(in_group, torch.where(in_group, columns, neutral), running, scale)


def rope_index_by_segments(
    prepared: Prepared, spec: MRopeSpec, validate: bool, max_segments: int | None
) -> tuple[Tensor, Tensor]:
    """Return positions and deltas, without a plan."""
    stream, items, segments, invalid = segments_of(prepared, spec, validate, max_segments)
    layout, num_tokens = layout_of(segments), stream.num_tokens
    if stream.exact:
        positions = all_positions(layout, num_tokens, prepared.dtype)
    else:
        index = torch.arange(num_tokens, dtype=stream.index_dtype, device=stream.row_bounds.device)
        positions = positions_at(layout, index).to(prepared.dtype)
    deltas = segments.rope_deltas
    if invalid is not None:
        positions = torch.where(invalid, -1, positions)
        deltas = torch.where(invalid, torch.iinfo(torch.int64).min, deltas)
    return positions.view(3, *stream.shape), deltas


def segments_of(
    prepared: Prepared, spec: MRopeSpec, validate: bool, max_segments: int | None
) -> tuple[Stream, Items, Segments, Tensor | None]:
    """Return the table of segments of at least one token, and whether it is not to be believed."""
    inputs, exact, tracing, _ = prepared
    stream = make_stream(
        inputs.input_ids,
        inputs.attention_mask,
        inputs.cu_seqlens,
        inputs.mm_token_type_ids,
        exact=exact,
    )
    images, videos = grids_of(prepared)
    items = make_items(images, videos, spec, stream.index_dtype, inputs.second_per_grid_ts)
    segments = segment_stream(stream, spec, items, max_segments)
    if validate and not tracing:
        faults.check_layout(
            items, segments, images, videos, spec, max_segments, lenient=inputs.lenient
        )
    if segments.runs.count is None:
        return stream, items, segments, None
    invalid = segments.runs.count > segments.runs.starts.shape[0]
    if tracing and validate:
        invalid = invalid | faults.layout_fault(items, segments, lenient=inputs.lenient)
    return stream, items, segments, invalid


def grids_of(prepared: Prepared) -> tuple[Tensor, Tensor]:
    """Return the grids of images and of videos, empty where there are none."""
    inputs = prepared.inputs
    no_grid = torch.empty((0, 3), dtype=torch.int64, device=inputs.input_ids.device)
    images = no_grid if inputs.image_grid_thw is None else inputs.image_grid_thw
    videos = no_grid if inputs.video_grid_thw is None else inputs.video_grid_thw
    return images, videos
