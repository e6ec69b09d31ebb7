"""The plan of a batch, from its tokens."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from vecrope.core import faults
from vecrope.core.items import make_items
from vecrope.core.stream import Stream, make_stream
from vecrope.families.rules import GlmImage
from vecrope.own_rules.dispatch import own_rope_index
from vecrope.own_rules.glm_image.decode import tail_of
from vecrope.own_rules.glm_image.prompt import read_markers
from vecrope.plans.concatenate import WIDE_FROM
from vecrope.plans.entries import plan_of_groups, whole_groups
from vecrope.plans.from_segments import (
    grids_of,
    groups_of_segments,
    locations_of_segments,
    segments_of,
)
from vecrope.plans.line_plan import LinePlan, no_images
from vecrope.plans.lines import Lines, lines_of
from vecrope.plans.locations import plan_of_locations
from vecrope.plans.plan import RopeIndexPlan
from vecrope.prepare import Prepared
from vecrope.spec import MRopeSpec


def build_plan(
    prepared: Prepared, spec: MRopeSpec, validate: bool, max_groups: int | None
) -> RopeIndexPlan:
    """Return the plan of a batch."""
    if spec.own_rule is not None:
        return _plan_of_lines(prepared, spec, validate)
    inputs, exact, tracing, dtype = prepared
    images, videos = grids_of(prepared)
    if validate and not tracing:
        faults.check_grids(images, videos, spec, lenient=inputs.lenient)
        faults.check_seconds(inputs.second_per_grid_ts, videos, spec)
    if not inputs.input_ids.numel():
        return _plan_of_no_tokens(prepared, spec, validate)
    stream, items, segments, invalid = segments_of(prepared, spec, validate, None)
    if exact:
        return plan_of_groups(
            groups_of_segments(segments, items),
            spec,
            row_bounds=stream.row_bounds,
            num_tokens=stream.num_tokens,
            seq_len=_seq_len(stream),
            dtype=dtype,
            kept=stream.kept,
        )
    capacity = stream.num_tokens if max_groups is None else max_groups
    plan, count = plan_of_locations(
        locations_of_segments(stream, segments),
        spec,
        capacity,
        row_bounds=stream.row_bounds,
        next_positions=segments.next_positions,
        rope_deltas=segments.rope_deltas,
        seq_len=_seq_len(stream),
        dtype=dtype,
        kept=stream.kept,
    )
    if validate and not tracing and int(count) > capacity:
        raise ValueError(
            f"max_groups must be at least {int(count)} for this input, got {max_groups}"
        )
    assert invalid is not None
    return plan.voided(invalid | (count > capacity))


def _plan_of_no_tokens(prepared: Prepared, spec: MRopeSpec, validate: bool) -> RopeIndexPlan:
    """Return the plan of rows of which none has a token."""
    inputs, exact, tracing, dtype = prepared
    stream = make_stream(inputs.input_ids, None, inputs.cu_seqlens, None, exact=exact)
    images, videos = grids_of(prepared)
    items = make_items(images, videos, spec, torch.int64, inputs.second_per_grid_ts)
    if validate and not tracing and not inputs.lenient:
        faults.check_none_left_over(items)
    none = torch.zeros(0, dtype=torch.int64, device=stream.row_bounds.device)
    scale = torch.empty((0, 0), device=none.device) if items.pace is None else items.pace[:, :0]
    return plan_of_groups(
        whole_groups(none, none, none, none, none, scale),
        spec,
        row_bounds=stream.row_bounds.long(),
        num_tokens=0,
        seq_len=_seq_len(stream),
        dtype=dtype,
    )


def _plan_of_lines(prepared: Prepared, spec: MRopeSpec, validate: bool) -> RopeIndexPlan:
    """Return the plan of a family with a rule of its own, from its positions."""
    inputs, exact, tracing, _ = prepared
    position_ids, rope_deltas = own_rope_index(inputs, spec, validate=validate)
    stream = make_stream(
        inputs.input_ids, inputs.attention_mask, inputs.cu_seqlens, None, exact=exact
    )
    positions, bounds = position_ids.flatten(1), stream.row_bounds
    lengths = bounds.diff()
    if spec.delta_length == "valid" and stream.kept is not None:
        lengths = pad(stream.kept.cumsum(0), (1, 0))[bounds].diff()
    if stream.num_tokens:
        lines = lines_of(positions, stream.kept, bounds, exact=exact)
    else:
        empty = positions.new_zeros((positions.shape[0], 1))
        slopes = torch.ones((positions.shape[0] + 1, 1), dtype=torch.int8, device=empty.device)
        lines = Lines(bounds.new_zeros(1), empty, slopes)
    index_dtype = torch.int64 if stream.num_tokens >= WIDE_FROM else torch.int32
    tail, misfit = no_images(positions.device), None
    if isinstance(spec.own_rule, GlmImage):
        reading = read_markers(inputs, spec, validate=False)
        tail, misfit = tail_of(reading, spec), reading.misfit
    plan = LinePlan(
        row_bounds=bounds.to(index_dtype),
        next_positions=rope_deltas.view(-1) + lengths,
        rope_deltas=rope_deltas,
        num_tokens=stream.num_tokens,
        seq_len=_seq_len(stream),
        dtype=position_ids.dtype,
        padding_value=spec.padding_value,
        starts=lines.starts.to(index_dtype),
        bases=lines.bases if lines.bases.is_floating_point() else lines.bases.to(index_dtype),
        slopes=lines.slopes,
        generated=tail.images,
        generated_rows=tail.rows,
    )
    return plan.voided(misfit) if misfit is not None and validate and tracing else plan


def _seq_len(stream: Stream) -> int | None:
    return stream.shape[1] if len(stream.shape) == 2 else None
