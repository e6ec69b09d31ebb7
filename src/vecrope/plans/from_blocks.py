"""The plan of a family with a rule of its own.

A batch on a CPU is laid out in blocks, masked or not, and no positions are made. They are made, and
have an entry each, where no value is read: under tracing, with a capacity and on a device. So they
are where something does not fit and is not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import add, sub

import torch
from torch import Tensor
from torch.nn.functional import pad

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

# Tokens of a batch, the blocks of the unmasked ones, axes, deltas (B,), the dtype of the positions,
# the position of masked tokens, and what is generated.
_Laid = tuple[Tokens, list[Block], int, Sequence[float], torch.dtype, int, Tail]


def plan_of_own_rule(prepared: Prepared, spec: MRopeSpec, validate: bool) -> LinePlan:
    """Return the plan of a batch; exact, or with an entry for each token, by how it is prepared."""
    inputs, exact, _, _ = prepared
    laid = None
    if exact:
        try:
            laid = _in_blocks(inputs, spec)
        except ValueError:
            if validate:
                raise
    if laid is None:
        return _plan_of_positions(prepared, spec, validate)
    tokens, blocks, num_axes, deltas, dtype, padding, tail = laid
    if inputs.attention_mask is not None:
        masked = (*(padding,) * num_axes, 1, 0, ())
        blocks = _with_masked(blocks, inputs.attention_mask.view(-1), tokens, masked)
    blocks = blocks or [(0, *(0,) * num_axes, 1, 0, (ALONG,) * num_axes)]
    sizes, *between, steps = zip(*blocks, strict=True)
    codes = {each: code_of(each) for each in {*steps}}
    columns = [[*accumulate(sizes[:-1], initial=0)], *between, [*map(codes.__getitem__, steps)]]
    bounds = tokens.given_bounds
    lengths, kept = ([*map(sub, each[1:], each)] for each in (bounds, tokens.bounds))
    following = [*map(add, deltas, lengths if spec.delta_length == "padded" else kept)]
    rows = [bounds[:-1], lengths, following, deltas, [0] * len(deltas)]
    of_rows, of_entries = torch.int64, index_dtype(inputs.input_ids.numel())
    if dtype == torch.float32:
        of_rows = of_entries = torch.float64
    return LinePlan(
        rows=_table(rows, of_rows),
        entries=_table(columns, of_entries),
        generated=tail.images,
        generated_rows=tail.rows,
        **fields_of(inputs.input_ids.shape, spec, dtype),
    )


def _table(columns: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    return torch.tensor(columns, dtype=dtype, device="cpu").t().contiguous()


def _in_blocks(inputs: Inputs, spec: MRopeSpec) -> _Laid:
    """Return the blocks of a batch on a CPU."""
    layout, tail = lay_out(inputs, spec), _no_tail(inputs)
    dtype, _, padding = answer_dtypes(inputs, spec)
    if isinstance(spec.own_rule, GlmImage):
        tail = tail_of_rows(read_rows(layout.tokens, spec), spec)
    blocks, deltas = layout.blocks(), layout.deltas(spec)
    return layout.tokens, blocks, layout.num_axes, deltas, dtype, padding, tail


def _with_masked(
    blocks: Sequence[Block], mask: Tensor, tokens: Tokens, masked: Block
) -> list[Block]:
    """Return blocks of all tokens: those of the unmasked ones, cut where masked ones stand.

    Args:
        blocks: of the unmasked tokens.
        mask: (N,) bool, True = token.
        tokens: the unmasked ones.
        masked: a block of masked tokens, but for their number.
    """
    edges = (mask[1:] != mask[:-1]).nonzero().view(-1).add_(1).tolist()
    starts = sorted({0, *edges, *tokens.given_bounds} - {len(mask)})
    flags = mask[torch.tensor(starts, dtype=torch.int64, device="cpu")].tolist()
    rest, cut = iter(blocks), list[Block]()
    block: Block = (0,)
    for start, stop, flag in zip(starts, [*starts[1:], len(mask)], flags, strict=True):
        left = stop - start
        if not flag:
            cut.append((left, *masked))
            continue
        while left:
            block = block if block[0] else next(rest)
            if block[0] <= left:
                cut.append(block)
                left, block = left - block[0], (0,)
            else:
                size, *between, before, steps = block
                cut.append((left, *between, before, steps))
                left, block = 0, (size - left, *between, before + left, steps)
    return cut


def _no_tail(inputs: Inputs) -> Tail:
    none = torch.empty((3, 0), dtype=torch.int64, device=inputs.input_ids.device)
    return Tail(none, none)


def _plan_of_positions(prepared: Prepared, spec: MRopeSpec, validate: bool) -> LinePlan:
    """Return the plan of a batch by its positions."""
    inputs, exact, tracing, _ = prepared
    ids = inputs.input_ids
    stream = make_stream(ids, inputs.attention_mask, inputs.cu_seqlens, None, exact=exact)
    position_ids, rope_deltas = own_rope_index(inputs, spec, validate=validate)
    bounds = stream.row_bounds.long()
    lengths = measured = bounds.diff()
    if spec.delta_length == "valid" and stream.kept is not None:
        measured = pad(stream.kept.cumsum(0), (1, 0))[bounds].diff()
    tail, misfit = _no_tail(inputs), None
    if isinstance(spec.own_rule, GlmImage):
        reading = read_markers(inputs, spec, validate=validate and tracing)
        tail, misfit = tail_of(reading, spec), reading.misfit
    deltas = rope_deltas.view(-1)
    deltas = deltas.double() if deltas.is_floating_point() else deltas.long()
    rows = (bounds[:-1], lengths, deltas + measured, deltas, torch.zeros_like(deltas))
    plan = LinePlan(
        rows=torch.stack([column.to(deltas) for column in rows], 1),
        entries=entries_of_tokens(position_ids.flatten(1), stream.kept, index_dtype(ids.numel())),
        generated=tail.images,
        generated_rows=tail.rows,
        **fields_of(ids.shape, spec, position_ids.dtype),
    )
    return plan if misfit is None else plan.voided(misfit)
