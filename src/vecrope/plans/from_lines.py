"""The plan of a family with a rule of its own, of lines.

A checked batch on a CPU is laid out in lines, masked or not, and no positions are made. They are
made, and then cut into lines, where no value is read (under tracing, with a capacity, on a device),
and of a batch that is not to be checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import add, sub
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.stream import make_stream
from vecrope.families.rules import GlmImage, OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.common import Tokens, positions_dtype
from vecrope.own_rules.dispatch import lay_out, own_rope_index
from vecrope.own_rules.glm_image.decode import tail_of
from vecrope.own_rules.glm_image.generated import Tail
from vecrope.own_rules.glm_image.host import read_rows, tail_of_rows
from vecrope.own_rules.glm_image.prompt import read_markers
from vecrope.own_rules.layout import Line
from vecrope.own_rules.omni.checks import check_media_types
from vecrope.own_rules.omni.host import follow_on_host
from vecrope.own_rules.omni.lines import lines_of_entries
from vecrope.plans.line_plan import LinePlan, lines_of
from vecrope.plans.table import WIDE_FROM, fields_of
from vecrope.prepare import Prepared
from vecrope.spec import MRopeSpec


class _Lined(NamedTuple):
    """A batch in lines."""

    tokens: Tokens
    lines: Sequence[Line]  # of the unmasked tokens
    num_axes: int
    deltas: Sequence[float]  # (B,)
    dtype: torch.dtype  # of the positions
    padding: int  # the position of masked tokens
    tail: Tail  # what is generated


def plan_of_own_rule(prepared: Prepared, spec: MRopeSpec, validate: bool) -> LinePlan:
    """Return the plan of a batch; exact, or with a line for every token, by how it is prepared."""
    inputs, exact, _, _ = prepared
    lined = _in_lines(inputs, spec) if exact and validate else None
    if lined is None:  # what does not fit is named there
        return _plan_of_positions(prepared, spec, validate)
    tokens, lines, num_axes, deltas, dtype, padding, tail = lined
    if inputs.attention_mask is not None:
        lines = _with_masked(lines, inputs.attention_mask.view(-1), tokens, (padding,) * num_axes)
    sizes, *bases, slopes = zip(*lines or [(0, *(0,) * num_axes, (1,) * num_axes)], strict=True)
    # Of a masked line all bits are 0; otherwise the last is 1.
    bits = {
        each: sum(bit << axis for axis, bit in enumerate((*each, 1))) if each else 0
        for each in {*slopes}
    }
    columns = [[*accumulate(sizes[:-1], initial=0)], *bases, [*map(bits.__getitem__, slopes)]]
    fractions = dtype == torch.float32
    bounds, num_tokens = tokens.given_bounds, inputs.input_ids.numel()
    lengths, kept = ([*map(sub, each[1:], each)] for each in (bounds, tokens.bounds))
    following = [*map(add, deltas, lengths if spec.delta_length == "padded" else kept)]
    rows = [bounds[:-1], lengths, following, deltas, [0] * len(deltas)]
    narrow = torch.int32 if num_tokens < WIDE_FROM else torch.int64
    return LinePlan(
        rows=_table(rows, torch.float64 if fractions else torch.int64),
        entries=_table(columns, torch.float64 if fractions else narrow),
        generated=tail.images,
        generated_rows=tail.rows,
        **fields_of(inputs.input_ids.shape, spec, dtype),
    )


def _table(columns: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    return torch.tensor(columns, dtype=dtype, device="cpu").t().contiguous()


def _in_lines(inputs: Inputs, spec: MRopeSpec) -> _Lined | None:
    """Return the lines of a batch on a CPU; None where something does not fit."""
    rule = spec.own_rule
    if isinstance(rule, OmniRule):
        check_media_types(inputs, spec, rule)
        tokens, entries, rope_deltas, dtypes = follow_on_host(inputs, spec, rule)
        lines = lines_of_entries(entries, rounds=spec.position_dtype == "float32")
        deltas = rope_deltas.view(-1).tolist()
        return _Lined(tokens, lines, 3, deltas, dtypes.positions, dtypes.padding, _no_tail())
    layout = lay_out(inputs, spec)
    if layout is None:
        return None
    tokens, tail = layout.tokens, _no_tail()
    if isinstance(rule, GlmImage):
        tail = tail_of_rows(read_rows(tokens, spec) or [], spec)
    dtype = positions_dtype(inputs, spec)
    return _Lined(
        tokens,
        layout.lines(),
        layout.num_axes,
        layout.deltas(spec),
        dtype,
        spec.padding_value,
        tail,
    )


def _with_masked(
    lines: Sequence[Line], mask: Tensor, tokens: Tokens, padding: tuple[int, ...]
) -> list[Line]:
    """Return the lines of all tokens: those of the unmasked ones, cut where masked ones stand."""
    edges = (mask[1:] != mask[:-1]).nonzero().view(-1).add_(1).tolist()
    starts = sorted({0, *edges, *tokens.given_bounds} - {len(mask)})
    flags = mask[torch.tensor(starts, dtype=torch.int64, device="cpu")].tolist()
    rest, cut = iter(lines), list[Line]()
    size, places, slopes = 0, list[float](), tuple[int, ...]()
    for start, stop, flag in zip(starts, [*starts[1:], len(mask)], flags, strict=True):
        left = stop - start
        if not flag:
            cut.append((left, *padding, ()))
            continue
        while left:
            if not size:
                size, *places, slopes = next(rest)
            part = min(size, left)
            cut.append((part, *places, slopes))
            places = [place + part * slope for place, slope in zip(places, slopes, strict=True)]
            size, left = size - part, left - part
    return cut


def _no_tail() -> Tail:
    none = torch.empty((3, 0), dtype=torch.int64, device="cpu")
    return Tail(none, none)


def _plan_of_positions(prepared: Prepared, spec: MRopeSpec, validate: bool) -> LinePlan:
    """Return the plan of a batch by its positions."""
    inputs, exact, tracing, _ = prepared
    ids = inputs.input_ids
    stream = make_stream(ids, inputs.attention_mask, inputs.cu_seqlens, None, exact=exact)
    index_dtype = torch.int64 if stream.num_tokens >= WIDE_FROM else torch.int32
    position_ids, rope_deltas = own_rope_index(inputs, spec, validate=validate)
    positions, bounds = position_ids.flatten(1), stream.row_bounds.long()
    lengths = measured = bounds.diff()
    if spec.delta_length == "valid" and stream.kept is not None:
        measured = pad(stream.kept.cumsum(0), (1, 0))[bounds].diff()
    none = torch.empty((3, 0), dtype=torch.int64, device=ids.device)
    tail, misfit = Tail(none, none), None
    if isinstance(spec.own_rule, GlmImage):
        reading = read_markers(inputs, spec, validate=False)
        tail, misfit = tail_of(reading, spec), reading.misfit
    deltas = rope_deltas.view(-1)
    deltas = deltas.double() if deltas.is_floating_point() else deltas.long()
    rows = (bounds[:-1], lengths, deltas + measured, deltas, torch.zeros_like(deltas))
    plan = LinePlan(
        rows=torch.stack([column.to(deltas) for column in rows], 1),
        entries=lines_of(positions, stream.kept, stream.row_bounds, index_dtype, exact=exact),
        generated=tail.images,
        generated_rows=tail.rows,
        **fields_of(ids.shape, spec, position_ids.dtype),
    )
    return plan.voided(misfit) if misfit is not None and validate and tracing else plan
