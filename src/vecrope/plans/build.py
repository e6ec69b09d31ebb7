"""The plan of a batch, from its tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vecrope.core import faults
from vecrope.core.items import make_items
from vecrope.core.stream import make_stream
from vecrope.forms.eager.rope_index import find_groups
from vecrope.forms.select import fused_pipeline, takes_kernels
from vecrope.forms.static import locate
from vecrope.inputs import Inputs
from vecrope.plans.from_groups import plan_of_groups
from vecrope.plans.from_locations import plan_of_locations
from vecrope.plans.from_positions import plan_of_positions
from vecrope.plans.group_plan import GroupPlan
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.table import fields_of
from vecrope.prepare import Prepared, prepare
from vecrope.sequences import SequenceNumbering, deltas_of_sequences, packed_sequences
from vecrope.spec import MRopeSpec


def plan_of_inputs(
    inputs: Inputs, spec: MRopeSpec, *, validate: bool, max_groups: int | None = None
) -> RopeIndexPlan:
    """Return the plan of a batch whose metadata have been checked."""
    if spec.own_rule is None and takes_kernels(inputs.input_ids):
        plan = _plan_by_kernels(inputs, spec, validate, max_groups)
        if plan is not None:
            return plan
        # What is wrong there is found once more below, and named.
    prepared = prepare(inputs, spec, validate, max_groups)
    if spec.own_rule is not None:
        return plan_of_positions(prepared, spec, validate)
    if prepared.exact and inputs.input_ids.numel():
        batch = find_groups(prepared.inputs, spec)
        if batch is not None:
            return plan_of_groups(batch, spec, prepared.dtype, inputs.input_ids.shape)
        # What does not fit is named below.
    return _plan_of_tokens(prepared, spec, validate, max_groups)


def plan_of_sequences(
    inputs: Inputs,
    spec: MRopeSpec,
    sequence_ids: Tensor,
    max_sequences: int | None,
    numbering: SequenceNumbering,
    *,
    validate: bool,
    max_groups: int | None,
) -> RopeIndexPlan:
    """Return the plan of rows that hold several sequences each, which are the rows of the plan."""
    packed, invalid = packed_sequences(
        inputs, spec, sequence_ids, max_sequences, numbering, validate=validate
    )
    plan = plan_of_inputs(packed, spec, validate=validate, max_groups=max_groups)
    plan = plan.with_deltas(deltas_of_sequences(packed, spec, plan.rope_deltas))
    plan = replace(plan, seq_len=inputs.input_ids.shape[1])
    return plan if invalid is None else plan.voided(invalid)


def _plan_by_kernels(
    inputs: Inputs, spec: MRopeSpec, validate: bool, max_groups: int | None
) -> GroupPlan | None:
    """Return the plan of a batch on a device with Triton; None where something is wrong with it."""
    ids = inputs.input_ids
    capacity = ids.numel() if max_groups is None else max_groups
    tables = fused_pipeline().fused_plan(inputs, spec, validate=validate, capacity=capacity)
    if tables is None:
        return None
    scale = tables.time_scale
    return GroupPlan(
        rows=tables.rows,
        entries=tables.entries,
        time_scale=tables.entries.new_empty((capacity, 0)) if scale is None else scale,
        **fields_of(ids.shape, spec, torch.int64 if spec.position_dtype == "int64" else ids.dtype),
    )


def _plan_of_tokens(
    prepared: Prepared, spec: MRopeSpec, validate: bool, max_groups: int | None
) -> RopeIndexPlan:
    """Return the plan of a batch from where each token stands; checked, it says what is wrong."""
    inputs, exact, tracing, dtype = prepared
    checked = validate and not tracing
    device, seconds = inputs.input_ids.device, inputs.second_per_grid_ts
    no_grid = torch.empty((0, 3), dtype=torch.int64, device=device)
    images = no_grid if inputs.image_grid_thw is None else inputs.image_grid_thw
    videos = no_grid if inputs.video_grid_thw is None else inputs.video_grid_thw
    if checked:
        faults.check_grids(images, videos, spec, round_grid_sides=inputs.round_grid_sides)
        faults.check_seconds(seconds, videos, spec)
    stream = make_stream(
        inputs.input_ids,
        inputs.attention_mask,
        inputs.cu_seqlens,
        inputs.mm_token_type_ids,
        exact=exact,
    )
    items = make_items(images, videos, spec, stream.index_dtype, seconds)
    scale = items.time_scale
    if scale is None:
        scale = torch.empty((0, items.masked + 1), dtype=torch.int32, device=device)
    elif not (len(videos) and spec.video_time == "seconds"):
        scale = scale.to(torch.int32)
    if stream.num_tokens == 0:
        if checked and not inputs.allow_unused_grids:
            faults.check_none_left_over(items)
        return _plan_of_nothing(inputs, spec, stream.num_rows, scale, dtype)
    tokens = locate(stream, spec, items)
    capacity = stream.num_tokens if max_groups is None else max_groups
    plan, count = plan_of_locations(tokens, spec, capacity, scale, dtype)
    invalid = count > capacity
    if validate:
        fault = faults.layout_fault(tokens, spec, allow_unused_grids=inputs.allow_unused_grids)
        if checked and bool(fault):
            faults.raise_layout_fault(
                tokens, images, videos, spec, allow_unused_grids=inputs.allow_unused_grids
            )
        if checked and bool(invalid):
            raise ValueError(
                f"max_groups must be at least {int(count)} for this input, got {max_groups}"
            )
        invalid = invalid | fault
    return plan.voided(invalid)


def _plan_of_nothing(
    inputs: Inputs, spec: MRopeSpec, num_rows: int, scale: Tensor, dtype: torch.dtype
) -> GroupPlan:
    """Return the plan of rows without a token: an entry that begins where the rows do."""
    rows = torch.zeros((num_rows, 5), dtype=torch.int64, device=inputs.input_ids.device)
    entries = torch.zeros((1, 7), dtype=torch.int32, device=rows.device)
    entries[:, 4:6].fill_(1)
    fields = fields_of(inputs.input_ids.shape, spec, dtype)
    return GroupPlan(rows=rows, entries=entries, time_scale=scale[:, -1:].t(), **fields)
