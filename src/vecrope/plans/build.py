"""The plan of a batch, from its tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vecrope.forms.eager.rope_index import find_groups
from vecrope.forms.select import fused_pipeline, takes_kernels
from vecrope.inputs import Inputs, positions_dtype
from vecrope.plans.from_blocks import plan_of_own_rule
from vecrope.plans.from_groups import plan_of_groups
from vecrope.plans.from_locations import plan_of_tokens
from vecrope.plans.group_plan import GroupPlan
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.table import fields_of
from vecrope.prepare import on_host, prepare
from vecrope.sequences import SequenceNumbering, deltas_of_sequences, packed_sequences
from vecrope.spec import MRopeSpec


def plan_of_inputs(
    inputs: Inputs, spec: MRopeSpec, *, validate: bool, max_groups: int | None = None
) -> RopeIndexPlan:
    """Return the plan of a batch whose metadata have been checked."""
    ids, dtype = inputs.input_ids, positions_dtype(inputs, spec)
    if (copied := on_host(inputs, spec, validate=validate)) is not None:
        plan = plan_of_inputs(copied, spec, validate=True, max_groups=max_groups)
        return plan.to(ids.device)
    if spec.own_rule is None and inputs.open_markers is None and takes_kernels(ids):
        tables = fused_pipeline().fused_plan(inputs, spec, validate=validate, capacity=max_groups)
        if tables is not None:
            rows, entries, scale = tables.rows, tables.entries, tables.time_scale
            scale = entries.new_empty((len(entries), 0)) if scale is None else scale
            return GroupPlan(rows, entries, *fields_of(ids.shape, spec, dtype), scale)
        # What is wrong there is found once more below, and named.
    prepared = prepare(inputs, spec, validate, max_groups)
    if spec.own_rule is not None:
        return plan_of_own_rule(prepared, spec, validate)
    if prepared.exact and ids.numel():
        try:
            batch = find_groups(prepared.inputs, spec)
        except ValueError:
            if validate:
                raise
        else:
            return plan_of_groups(batch, spec, dtype, ids.shape)
    return plan_of_tokens(prepared, spec, validate, max_groups)


def plan_of_sequences(
    inputs: Inputs,
    spec: MRopeSpec,
    sequence_ids: Tensor | None,
    max_sequences: int | None,
    numbering: SequenceNumbering,
    *,
    validate: bool,
    max_groups: int | None,
) -> RopeIndexPlan:
    """Return the plan of a batch; sequences that rows hold by `sequence_ids` are its rows."""
    packed, invalid = packed_sequences(
        inputs, spec, sequence_ids, max_sequences, numbering, validate=validate
    )
    plan = plan_of_inputs(packed, spec, validate=validate, max_groups=max_groups)
    if sequence_ids is None:
        return plan
    deltas = deltas_of_sequences(packed, spec, plan.rope_deltas)
    rows = torch.cat((plan.rows[:, :3], deltas, plan.rows[:, 4:]), 1)
    plan = replace(plan, rows=rows, seq_len=inputs.input_ids.shape[1])
    return plan if invalid is None else plan.invalidated(invalid)
