"""The stages composed up to the segment table, and the table made a plan."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import pad

from vecrope.core import faults
from vecrope.core.items import Items, make_items
from vecrope.core.stream import Stream, make_stream
from vecrope.families.rules import GlmImage
from vecrope.own_rules.dispatch import own_rope_index
from vecrope.own_rules.glm_image.decode import tail_of
from vecrope.own_rules.glm_image.prompt import read_markers
from vecrope.plans import segment_faults
from vecrope.plans.lines import Lines, lines_of
from vecrope.plans.plan import RopeIndexPlan
from vecrope.positions import layout_of
from vecrope.prepare import Prepared
from vecrope.segments import Segments, segment_stream
from vecrope.spec import MRopeSpec

LEAST = torch.iinfo(torch.int64).min


def build_plan(
    prepared: Prepared, spec: MRopeSpec, validate: bool, max_segments: int | None
) -> RopeIndexPlan:
    """Return the plan of a batch."""
    if spec.own_rule is not None:
        return _plan_of_lines(prepared, spec, validate)
    inputs, exact, tracing, dtype = prepared
    input_ids, seconds = inputs.input_ids, inputs.second_per_grid_ts
    device = input_ids.device
    stream = make_stream(
        input_ids,
        inputs.attention_mask,
        inputs.cu_seqlens,
        inputs.mm_token_type_ids,
        exact=exact,
    )
    no_grid = torch.empty((0, 3), dtype=torch.int64, device=device)
    images = no_grid if inputs.image_grid_thw is None else inputs.image_grid_thw
    videos = no_grid if inputs.video_grid_thw is None else inputs.video_grid_thw
    if validate and not tracing:
        faults.check_grids(images, videos, spec, lenient=inputs.lenient)
        faults.check_seconds(seconds, videos, spec)
    items = make_items(images, videos, spec, stream.index_dtype, seconds)
    if stream.num_tokens == 0:
        if validate and not tracing and not inputs.lenient:
            faults.check_none_left_over(items)
        return _empty_plan(stream, items, spec, dtype)
    segments = segment_stream(stream, spec, items, max_segments)
    if validate and not tracing:
        segment_faults.check_layout(
            items, segments, images, videos, spec, max_segments, lenient=inputs.lenient
        )
    plan = plan_of(stream, segments, spec, dtype)
    if segments.runs.count is None:
        return plan
    invalid = segments.runs.count > segments.runs.starts.shape[0]
    if tracing and validate:
        invalid = invalid | segment_faults.layout_fault(items, segments, lenient=inputs.lenient)
    return voided(plan, invalid)


def plan_of(
    stream: Stream, segments: Segments, spec: MRopeSpec, dtype: torch.dtype
) -> RopeIndexPlan:
    """Return the plan of a segment table."""
    starts, table, pace = layout_of(segments)
    return RopeIndexPlan(
        starts=starts,
        table=table,
        pace=pace,
        slopes=None,
        row_bounds=stream.row_bounds,
        next_positions=segments.next_positions,
        rope_deltas=segments.rope_deltas,
        num_tokens=stream.num_tokens,
        seq_len=stream.shape[1] if len(stream.shape) == 2 else None,
        dtype=dtype,
        padding_value=spec.padding_value,
        exact=stream.exact,
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
    plan = RopeIndexPlan(
        starts=lines.starts,
        table=lines.bases,
        pace=None,
        slopes=lines.slopes,
        row_bounds=bounds,
        next_positions=rope_deltas.view(-1) + lengths,
        rope_deltas=rope_deltas,
        num_tokens=stream.num_tokens,
        seq_len=stream.shape[1] if len(stream.shape) == 2 else None,
        dtype=position_ids.dtype,
        padding_value=spec.padding_value,
        exact=exact,
    )
    if not isinstance(spec.own_rule, GlmImage):
        return plan
    reading = read_markers(inputs, spec, validate=False)
    tail = tail_of(reading, spec)
    plan = replace(plan, tail=tail.images, tail_rows=tail.rows)
    return voided(plan, reading.misfit) if validate and tracing else plan


def _empty_plan(stream: Stream, items: Items, spec: MRopeSpec, dtype: torch.dtype) -> RopeIndexPlan:
    """Return the plan of rows without a token, with one segment of text that none lies in."""
    num_rows, device = stream.num_rows, stream.row_bounds.device
    table = torch.ones((6, 1), dtype=stream.index_dtype, device=device)
    table[:2].fill_(0)
    return RopeIndexPlan(
        starts=torch.zeros(1, dtype=stream.index_dtype, device=device),
        table=table,
        pace=None if items.pace is None else items.pace[:, items.text].unsqueeze(1),
        slopes=None,
        row_bounds=stream.row_bounds,
        next_positions=torch.zeros(num_rows, dtype=torch.int64, device=device),
        rope_deltas=torch.zeros((num_rows, 1), dtype=torch.int64, device=device),
        num_tokens=0,
        seq_len=stream.shape[1] if len(stream.shape) == 2 else None,
        dtype=dtype,
        padding_value=spec.padding_value,
        exact=stream.exact,
    )


def voided(plan: RopeIndexPlan, invalid: torch.Tensor) -> RopeIndexPlan:
    """Return the plan, or where `invalid` (0-d bool) one that nobody takes for an answer.

    Every position of the prompt is then -1, and what is decoded after it far below 0.
    """
    if plan.slopes is not None:
        table = torch.where(invalid, -1, plan.table)
        plan = replace(plan, slopes=torch.where(invalid, 0, plan.slopes))
        if plan.tail_rows is not None:
            plan = replace(plan, tail_rows=torch.where(invalid, 0, plan.tail_rows))
    else:
        origin, base, *layout, span = plan.table.unbind()
        columns = (
            origin,
            torch.where(invalid, -1, base),
            *(torch.where(invalid, 1, column) for column in layout),
            torch.where(invalid, 0, span),
        )
        table = torch.stack(columns)
    return replace(
        plan,
        table=table,
        next_positions=torch.where(invalid, -(2**31), plan.next_positions),
        rope_deltas=torch.where(invalid, LEAST, plan.rope_deltas),
    )


def narrowed(plan: RopeIndexPlan) -> RopeIndexPlan:
    """Return the plan with indices of 32 bits, if they suffice."""
    if plan.starts.dtype == torch.int32 or plan.num_tokens >= 2**30:
        return plan
    table = plan.table if plan.table.is_floating_point() else plan.table.to(torch.int32)
    return replace(
        plan,
        starts=plan.starts.to(torch.int32),
        table=table,
        row_bounds=plan.row_bounds.to(torch.int32),
    )
