"""The plan of a family with a rule of its own, from its positions."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from vecrope.core.stream import make_stream
from vecrope.families.rules import GlmImage, OmniRule
from vecrope.own_rules.dispatch import own_rope_index
from vecrope.own_rules.glm_image.decode import tail_of
from vecrope.own_rules.glm_image.generated import Tail
from vecrope.own_rules.glm_image.prompt import read_markers
from vecrope.own_rules.omni.checks import check_media_types
from vecrope.own_rules.omni.host import follow_on_host
from vecrope.own_rules.omni.lines import lines_of_entries
from vecrope.plans.line_plan import LinePlan, lines_of
from vecrope.plans.table import WIDE_FROM, fields_of
from vecrope.prepare import Prepared
from vecrope.spec import MRopeSpec


def plan_of_positions(prepared: Prepared, spec: MRopeSpec, validate: bool) -> LinePlan:
    """Return the plan of a batch; exact, or with a line for every token, by how it is prepared."""
    inputs, exact, tracing, _ = prepared
    if isinstance(spec.own_rule, OmniRule) and exact and validate and inputs.attention_mask is None:
        return _plan_of_entries(prepared, spec, spec.own_rule)
    position_ids, rope_deltas = own_rope_index(inputs, spec, validate=validate)
    stream = make_stream(
        inputs.input_ids, inputs.attention_mask, inputs.cu_seqlens, None, exact=exact
    )
    positions, bounds = position_ids.flatten(1), stream.row_bounds.long()
    lengths = measured = bounds.diff()
    if spec.delta_length == "valid" and stream.kept is not None:
        measured = pad(stream.kept.cumsum(0), (1, 0))[bounds].diff()
    index_dtype = torch.int64 if stream.num_tokens >= WIDE_FROM else torch.int32
    none = torch.empty((3, 0), dtype=torch.int64, device=positions.device)
    tail, misfit = Tail(none, none), None
    if isinstance(spec.own_rule, GlmImage):
        reading = read_markers(inputs, spec, validate=False)
        tail, misfit = tail_of(reading, spec), reading.misfit
    deltas = rope_deltas.view(-1)
    deltas = deltas.double() if deltas.is_floating_point() else deltas.long()
    plan = LinePlan(
        rows=torch.stack(
            (
                *(bounds[:-1].to(deltas), lengths.to(deltas), deltas + measured, deltas),
                torch.zeros_like(deltas),
            ),
            1,
        ),
        entries=lines_of(positions, stream.kept, stream.row_bounds, index_dtype, exact=exact),
        generated=tail.images,
        generated_rows=tail.rows,
        **fields_of(inputs.input_ids.shape, spec, position_ids.dtype),
    )
    return plan.voided(misfit) if misfit is not None and validate and tracing else plan


def _plan_of_entries(prepared: Prepared, spec: MRopeSpec, rule: OmniRule) -> LinePlan:
    """Return the plan of an omni batch without masked tokens, from what its items are."""
    inputs = prepared.inputs
    check_media_types(inputs, spec, rule)
    tokens, entries, rope_deltas, _ = follow_on_host(inputs, spec, rule)
    dtype = rope_deltas.dtype
    if dtype != torch.float32:
        dtype = torch.int64 if spec.position_dtype == "int64" else inputs.input_ids.dtype
    num_tokens = tokens.bounds[-1]
    index_dtype = torch.int64 if num_tokens >= WIDE_FROM else torch.int32
    rounds = spec.position_dtype == "float32"
    lines = lines_of_entries(entries, rounds=rounds) or [(0, 0, 0, 0, (1, 1, 1))]
    table, start = [], 0
    for size, *bases, (time, height, width) in lines:
        table.append((start, *bases, time + 2 * height + 4 * width + 8))
        start += size
    deltas = rope_deltas.view(-1)
    deltas = deltas.double() if deltas.is_floating_point() else deltas.long()
    bounds = torch.tensor(tokens.bounds, device="cpu")
    lengths = bounds.diff().to(deltas)
    none = torch.empty((3, 0), dtype=torch.int64, device="cpu")
    rows = (bounds[:-1].to(deltas), lengths, deltas + lengths, deltas, torch.zeros_like(deltas))
    return LinePlan(
        rows=torch.stack(rows, 1),
        entries=torch.tensor(
            table,
            dtype=torch.float64 if dtype.is_floating_point else index_dtype,
            device="cpu",
        ),
        generated=none,
        generated_rows=none,
        **fields_of(inputs.input_ids.shape, spec, dtype),
    )
