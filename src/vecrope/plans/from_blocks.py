"""The plan of a family with a rule of its own.

A batch is laid out in blocks, masked or not, and no positions are made. They are made, and have an
entry each, where no value is read: under tracing, with a capacity, and on a device without checks.
So they are where something does not fit and is not checked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import add, itemgetter, mul, sub

import torch
from torch import Tensor

from vecrope.core.stream import make_stream
from vecrope.families.rules import GlmImage
from vecrope.inputs import Inputs
from vecrope.own_rules.common import Tokens
from vecrope.own_rules.dispatch import answer_dtypes, lay_out, own_rope_index
from vecrope.own_rules.glm_image.decode import tail_of
from vecrope.own_rules.glm_image.generated import Tail
from vecrope.own_rules.glm_image.host import read_rows, tail_of_rows
from vecrope.own_rules.glm_image.prompt import read_markers
from vecrope.own_rules.layout import ALONG, Block
from vecrope.plans.line_plan import LinePlan, code_of, entries_of_tokens
from vecrope.plans.table import fields_of, index_dtype
from vecrope.prepare import Prepared
from vecrope.spec import MRopeSpec


def plan_of_own_rule(prepared: Prepared, spec: MRopeSpec, validate: bool) -> LinePlan:
    """Return the plan of a batch; exact, or with an entry for each token, by how it is prepared."""
    if prepared.exact:
        try:
            return _plan_of_blocks(prepared.inputs, spec)
        except ValueError:
            if validate:
                raise
    return _plan_of_positions(prepared, spec, validate)


def _plan_of_blocks(inputs: Inputs, spec: MRopeSpec) -> LinePlan:
    """Return the exact plan of a batch on a CPU."""
    layout, tail = lay_out(inputs, spec), None
    tokens, num_axes, deltas = layout.tokens, layout.num_axes, layout.deltas(spec)
    dtype, _, padding = answer_dtypes(inputs, spec)
    if isinstance(spec.own_rule, GlmImage):
        tail = tail_of_rows(read_rows(tokens, spec), spec)
    blocks = layout.blocks()
    starts = accumulate((block[0] for block in blocks), initial=0)
    entries = [(start, *block[1:]) for start, block in zip(starts, blocks, strict=False)]
    if inputs.attention_mask is not None:
        masked = (*(padding,) * num_axes, 1, 0, ())
        entries = _with_masked(entries, inputs.attention_mask.view(-1), tokens, masked)
    *columns, steps = zip(*(entries or [(*(0,) * (num_axes + 1), 1, 0, (ALONG,))]), strict=True)
    codes = {each: code_of(each) for each in {*steps}}
    bounds = tokens.given_bounds
    lengths, kept = ([*map(sub, each[1:], each)] for each in (bounds, tokens.bounds))
    following = [*map(add, deltas, lengths if spec.delta_length == "padded" else kept)]
    fractions = torch.float64 if dtype == torch.float32 else None
    of_entries = fractions or index_dtype(inputs.input_ids.numel())
    of_rows = [bounds[:-1], lengths, following, deltas, [0] * len(deltas)]
    rows = torch.tensor(of_rows, dtype=fractions or torch.int64, device="cpu")
    columns.append(tuple(map(codes.__getitem__, steps)))
    table = torch.tensor(columns, dtype=of_entries, device="cpu").t()
    return _line_plan(rows, table, tail, (inputs, spec, dtype))


def _with_masked(
    entries: Sequence[Block], mask: Tensor, tokens: Tokens, masked: Block
) -> list[Block]:
    """Return blocks of all tokens: those of the unmasked ones, cut where `masked` ones stand.

    A block has its start where it had its size; `entries` has that among the unmasked `tokens`,
    where `mask` (N,) is True, and `masked` has none.
    """
    edges = (mask[1:] != mask[:-1]).nonzero().view(-1).add_(1).tolist()
    starts = sorted({0, *edges, *tokens.given_bounds} - {len(mask)})
    flags = mask[torch.tensor(starts, dtype=torch.int64, device="cpu")].tolist()
    sizes = map(sub, [*starts[1:], len(mask)], starts)
    kept_before = accumulate(map(mul, sizes, flags), initial=0)
    runs = [*zip(flags, kept_before, starts, strict=False)]
    cut: list[Block] = [(start, *masked) for kept, _, start in runs if not kept]
    begins, places = [entry[0] for entry in entries], [at for kept, at, _ in runs if kept]
    shifts = [start - at for kept, at, start in runs if kept]
    for at in {*begins, *places}:
        first, *between, before, steps = entries[bisect_right(begins, at) - 1]
        shift = shifts[bisect_right(places, at) - 1]
        cut.append((at + shift, *between, before + at - first, steps))
    return sorted(cut, key=itemgetter(0))


def _plan_of_positions(prepared: Prepared, spec: MRopeSpec, validate: bool) -> LinePlan:
    """Return the plan of a batch by its positions."""
    inputs, _, tracing, _ = prepared
    ids = inputs.input_ids
    stream = make_stream(inputs, spec)
    position_ids, rope_deltas = own_rope_index(inputs, spec, validate=validate)
    bounds = stream.row_bounds.long()
    lengths = bounds.diff()
    measured = stream.kept_in_rows.long() if spec.delta_length == "valid" else lengths
    tail, misfit = None, None
    if isinstance(spec.own_rule, GlmImage):
        reading = read_markers(inputs, spec, validate=validate and tracing)
        tail, misfit = tail_of(reading, spec), reading.misfit
    deltas = rope_deltas.view(-1)
    deltas = deltas.double() if deltas.is_floating_point() else deltas.long()
    rows = (bounds[:-1], lengths, deltas + measured, deltas, torch.zeros_like(deltas))
    entries = entries_of_tokens(position_ids.flatten(1), stream.kept, index_dtype(ids.numel()))
    table = torch.stack([column.to(deltas) for column in rows])
    plan = _line_plan(table, entries, tail, (inputs, spec, position_ids.dtype))
    return plan if misfit is None else plan.invalidated(misfit)


def _line_plan(
    rows: Tensor, entries: Tensor, tail: Tail | None, of: tuple[Inputs, MRopeSpec, torch.dtype]
) -> LinePlan:
    """Return a plan of `rows` (5, B), with what they generate behind."""
    generated = torch.empty((3, 0), dtype=torch.int64, device=rows.device)
    if tail is not None:
        generated, rows = tail.images, torch.cat((rows, tail.rows))
    fields = fields_of(of[0].input_ids.shape, *of[1:])
    return LinePlan(rows.t().contiguous(), entries.contiguous(), *fields, generated)
