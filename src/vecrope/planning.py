"""The stages composed up to the segment table, and the table made a plan."""

from __future__ import annotations

from dataclasses import replace

import torch

from vecrope import fit
from vecrope.items import Items, make_items
from vecrope.plan import RopeIndexPlan
from vecrope.positions import layout_of
from vecrope.prepare import Prepared
from vecrope.segments import Segments, segment_stream
from vecrope.spec import MRopeSpec
from vecrope.stream import Stream, make_stream

LEAST = torch.iinfo(torch.int64).min


def build_plan(
    prepared: Prepared, spec: MRopeSpec, validate: bool, max_segments: int | None
) -> RopeIndexPlan:
    """Return the plan of a batch of the shared rule."""
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
        fit.check_grids(images, videos, spec, lenient=inputs.lenient)
        fit.check_seconds(seconds, videos, spec)
    items = make_items(images, videos, spec, stream.index_dtype, seconds)
    if stream.num_tokens == 0:
        if validate and not tracing and not inputs.lenient:
            fit.check_none_left_over(items)
        return _empty_plan(stream, items, spec, dtype)
    segments = segment_stream(stream, spec, items, max_segments)
    if validate and not tracing:
        fit.check_layout(
            items, segments, images, videos, spec, max_segments, lenient=inputs.lenient
        )
    plan = plan_of(stream, segments, spec, dtype)
    if segments.runs.count is None:
        return plan
    invalid = segments.runs.count > segments.runs.starts.shape[0]
    if tracing and validate:
        invalid = invalid | fit.layout_fault(items, segments, lenient=inputs.lenient)
    return voided(plan, invalid)


def plan_of(
    stream: Stream, segments: Segments, spec: MRopeSpec, dtype: torch.dtype
) -> RopeIndexPlan:
    """Return the plan of a segment table."""
    return RopeIndexPlan(
        *layout_of(segments),
        row_bounds=stream.row_bounds,
        next_positions=segments.next_positions,
        rope_deltas=segments.rope_deltas,
        num_tokens=stream.num_tokens,
        seq_len=stream.shape[1] if len(stream.shape) == 2 else None,
        dtype=dtype,
        padding_value=spec.padding_value,
        exact=stream.exact,
    )


def _empty_plan(stream: Stream, items: Items, spec: MRopeSpec, dtype: torch.dtype) -> RopeIndexPlan:
    """Return the plan of rows without a token, with one segment of text that none lies in."""
    num_rows, device = stream.num_rows, stream.row_bounds.device
    table = torch.ones((6, 1), dtype=stream.index_dtype, device=device)
    table[:2].fill_(0)
    return RopeIndexPlan(
        starts=torch.zeros(1, dtype=stream.index_dtype, device=device),
        table=table,
        pace=None if items.pace is None else items.pace[:, items.text].unsqueeze(1),
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
    origin, base, *layout, span = plan.table.unbind()
    columns = (
        origin,
        torch.where(invalid, -1, base),
        *(torch.where(invalid, 1, column) for column in layout),
        torch.where(invalid, 0, span),
    )
    return replace(
        plan,
        table=torch.stack(columns),
        next_positions=torch.where(invalid, -(2**31), plan.next_positions),
        rope_deltas=torch.where(invalid, LEAST, plan.rope_deltas),
    )


def narrowed(plan: RopeIndexPlan) -> RopeIndexPlan:
    """Return the plan with indices of 32 bits, if they suffice."""
    if plan.starts.dtype == torch.int32 or plan.num_tokens >= 2**30:
        return plan
    return replace(
        plan,
        starts=plan.starts.to(torch.int32),
        table=plan.table.to(torch.int32),
        row_bounds=plan.row_bounds.to(torch.int32),
    )
