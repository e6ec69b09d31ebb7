"""The plan of a family with a rule of its own, from its positions."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.stream import make_stream
from vecrope.families.rules import GlmImage, OmniRule
from vecrope.inputs import Inputs
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
    rule, ids = spec.own_rule, inputs.input_ids
    stream = make_stream(ids, inputs.attention_mask, inputs.cu_seqlens, None, exact=exact)
    index_dtype = torch.int64 if stream.num_tokens >= WIDE_FROM else torch.int32
    if isinstance(rule, OmniRule) and exact and validate and inputs.attention_mask is None:
        entries, rope_deltas = _lines_of_items(inputs, spec, rule, index_dtype)
        dtype = rope_deltas.dtype
        if dtype != torch.float32:
            dtype = torch.int64 if spec.position_dtype == "int64" else ids.dtype
    else:
        position_ids, rope_deltas = own_rope_index(inputs, spec, validate=validate)
        positions, dtype = position_ids.flatten(1), position_ids.dtype
        entries = lines_of(positions, stream.kept, stream.row_bounds, index_dtype, exact=exact)
    bounds = stream.row_bounds.long()
    lengths = measured = bounds.diff()
    if spec.delta_length == "valid" and stream.kept is not None:
        measured = pad(stream.kept.cumsum(0), (1, 0))[bounds].diff()
    none = torch.empty((3, 0), dtype=torch.int64, device=ids.device)
    tail, misfit = Tail(none, none), None
    if isinstance(rule, GlmImage):
        reading = read_markers(inputs, spec, validate=False)
        tail, misfit = tail_of(reading, spec), reading.misfit
    deltas = rope_deltas.view(-1)
    deltas = deltas.double() if deltas.is_floating_point() else deltas.long()
    rows = (bounds[:-1], lengths, deltas + measured, deltas, torch.zeros_like(deltas))
    plan = LinePlan(
        rows=torch.stack([column.to(deltas) for column in rows], 1),
        entries=entries,
        generated=tail.images,
        generated_rows=tail.rows,
        **fields_of(ids.shape, spec, dtype),
    )
    return plan.voided(misfit) if misfit is not None and validate and tracing else plan


def _lines_of_items(
    inputs: Inputs, spec: MRopeSpec, rule: OmniRule, index_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the lines of an omni batch without masked tokens, and its deltas (B, 1)."""
    check_media_types(inputs, spec, rule)
    _, entries, rope_deltas, _ = follow_on_host(inputs, spec, rule)
    rounds = spec.position_dtype == "float32"
    lines = lines_of_entries(entries, rounds=rounds) or [(0, 0, 0, 0, (1, 1, 1))]
    sizes, *bases, slopes = zip(*lines, strict=True)
    starts = accumulate(sizes[:-1], initial=0)
    bits = (time + 2 * height + 4 * width + 8 for time, height, width in slopes)
    dtype = torch.float64 if rope_deltas.is_floating_point() else index_dtype
    columns = [[*starts], *bases, [*bits]]
    return torch.tensor(columns, dtype=dtype, device="cpu").t().contiguous(), rope_deltas
