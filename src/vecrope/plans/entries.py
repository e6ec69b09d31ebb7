"""The plan of a batch whose groups are known: their order among rows and masked runs, and sums."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import sub
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.search import search
from vecrope.plans.group_plan import GroupPlan
from vecrope.plans.plan import WIDE_FROM
from vecrope.spec import MRopeSpec

# Index of its first token, item, tokens, height, width, advance and extent.
HostGroup = tuple[int, int, int, int, int, int, int]


class GroupParts(NamedTuple):
    """The groups of a batch, or parts of them, in the order of the stream. All are int64."""

    start: Tensor  # (G,) index in the batch of the first token
    tokens: Tensor  # (G,)
    before: Tensor  # (G,) tokens of the group in its parts before
    height: Tensor  # (G,) of a frame, in tokens
    width: Tensor  # (G,)
    advance: Tensor  # (G,) by how much the group moves the running position
    extent: Tensor  # (G,) temporal positions that it takes
    # (2, G) factors that make the number of a frame its temporal offset, by `temporal_offset`;
    # (0, G): the number is the offset.
    time_scale: Tensor


def plan_of_groups(
    groups: GroupParts,
    spec: MRopeSpec,
    *,
    row_bounds: Tensor,
    num_tokens: int,
    seq_len: int | None,
    dtype: torch.dtype,
    kept: Tensor | None = None,
) -> GroupPlan:
    """Return the plan of a batch whose groups fit it; without a mask no operation reads values.

    Args:
        groups: of the batch.
        spec: of the shared rule.
        row_bounds: (B + 1,) int64, where each row starts in the batch, then N.
        num_tokens: N.
        seq_len: T, or None where the input was packed.
        dtype: of the positions.
        kept: (N,) bool, True = token; None: every one is.
    """
    num_rows = row_bounds.shape[0] - 1
    # The last bound is taken for an entry, too, until the positions of all are known.
    none, one = torch.zeros_like(row_bounds), torch.ones_like(row_bounds)
    tables = [torch.stack((row_bounds, none, none, none, one, one, none, none))]
    *columns, scale = groups
    start, tokens, before, height, width, advance, extent = columns
    moves = torch.where(before > 0, 0, advance)
    parts = torch.stack((start, tokens, before, moves, height, width, advance - moves, extent))
    if kept is not None and num_tokens:
        masked, parts, of_group = _cut_at_masked(parts, kept, row_bounds)
        tables.append(masked)
        scale = scale[:, of_group]
    tables.append(parts)
    table = torch.cat(tables, 1)
    order = table[0].argsort(stable=True)
    start, tokens, before, moves, height, width, moved, extent = table[:, order].unbind()

    counts = moves - tokens
    running = start + counts.cumsum(0) - counts
    place = torch.empty_like(order)
    place[order] = torch.arange(order.shape[0], device=order.device)
    bounds = place[: num_rows + 1]
    at_bounds = running[bounds]
    row = torch.zeros_like(order).index_fill_(0, bounds, 1).cumsum(0) - 1
    running -= at_bounds[row]
    next_positions = at_bounds.diff()
    if spec.span_rule == "hw":
        # A block can reach further than it moves the running position.
        reach = (running + extent - moved)[:-1]
        next_positions = next_positions.scatter_reduce(0, row[:-1], reach, "amax")
    lengths = row_bounds.diff()
    masked = before < 0
    if kept is not None and spec.delta_length == "valid":
        gaps = torch.where(masked, tokens, 0).cumsum(0)
        lengths = lengths - gaps[bounds].diff()
    base = (running - moved).masked_fill_(masked, spec.padding_value)
    entries = torch.stack((tokens, base, running + moves, height, width, before), 1)
    index_dtype = torch.int64 if num_tokens >= WIDE_FROM else torch.int32
    others = scale.new_zeros((scale.shape[0], order.shape[0] - scale.shape[1]))
    return GroupPlan(
        row_bounds=row_bounds.to(index_dtype),
        next_positions=next_positions,
        rope_deltas=(next_positions - lengths).unsqueeze(1),
        num_tokens=num_tokens,
        seq_len=seq_len,
        dtype=dtype,
        padding_value=spec.padding_value,
        starts=start[:-1].to(index_dtype),
        entries=entries[:-1].to(index_dtype),
        time_scale=torch.cat((others, scale), 1).t()[order[:-1]],
    )


def plan_of_few_groups(
    groups: Sequence[HostGroup],
    time_scale: Tensor,
    spec: MRopeSpec,
    *,
    row_bounds: Sequence[int],
    seq_len: int | None,
    dtype: torch.dtype,
) -> GroupPlan:
    """Return the plan of few groups, of a batch that masks nothing.

    The host sums up the few numbers of few groups faster than tensor operators do.

    Args:
        groups: in the order of the stream.
        time_scale: (2, I) or (0, I), of the items.
        spec: of the shared rule.
        row_bounds: where each row starts in the batch, then N.
        seq_len: T, or None where the input was packed.
        dtype: of the positions.
    """
    starts, entries, items, next_positions = [], [], [], []
    at, num_groups, num_items = 0, len(groups), time_scale.shape[1]
    for begin, stop in pairwise(row_bounds):
        starts.append(begin)
        entries.append((0, 0, 0, 1, 1, 0))
        items.append(num_items)
        # Tokens before which all is done, and the position there.
        token, position, reach = begin, 0, 0
        while at < num_groups and groups[at][0] < stop:
            start, item, tokens, height, width, advance, extent = groups[at]
            position += start - token
            token = start + tokens
            reach = max(reach, position + extent)
            starts.append(start)
            entries.append((tokens, position, position + advance, height, width, 0))
            items.append(item)
            position += advance
            at += 1
        position += stop - token
        # A block can reach further than it moves the running position.
        next_positions.append(max(position, reach) if spec.span_rule == "hw" else position)
    num_tokens = row_bounds[-1]
    index_dtype = torch.int64 if num_tokens >= WIDE_FROM else torch.int32
    lengths = map(sub, row_bounds[1:], row_bounds)
    scale = time_scale.new_empty((len(entries), 0))
    if time_scale.shape[0]:
        scale = pad(time_scale, (0, 1)).t()[torch.tensor(items, device="cpu")]
    return GroupPlan(
        row_bounds=torch.tensor(row_bounds, dtype=index_dtype, device="cpu"),
        next_positions=torch.tensor(next_positions, device="cpu"),
        rope_deltas=torch.tensor([*zip(map(sub, next_positions, lengths))], device="cpu"),
        num_tokens=num_tokens,
        seq_len=seq_len,
        dtype=dtype,
        padding_value=spec.padding_value,
        starts=torch.tensor(starts, dtype=index_dtype, device="cpu"),
        entries=torch.tensor(entries, dtype=index_dtype, device="cpu").view(-1, 6),
        time_scale=scale,
    )


def _cut_at_masked(
    parts: Tensor, kept: Tensor, row_bounds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut groups where masked tokens interrupt them; reads values.

    Args:
        parts: (8, G), columns of the table of entries.
        kept: (N,) bool, N at least 1.
        row_bounds: (B + 1,).

    Returns:
        The masked runs (8, M), none of which goes on into another row; the parts (8, P), and which
        of the given ones each is of.
    """
    num_tokens = kept.shape[0]
    edges = pad(kept[1:] != kept[:-1], (1, 0), value=True)
    edges.index_fill_(0, row_bounds[row_bounds < num_tokens], True)
    edges = edges.nonzero().view(-1)
    is_masked = ~kept[edges]
    start = edges[is_masked]
    lengths = pad(edges, (0, 1), value=num_tokens).diff()[is_masked]
    none, one = torch.zeros_like(start), torch.ones_like(start)
    masked = torch.stack((start, lengths, -lengths, none, one, one, none, none))
    of_group = torch.arange(parts.shape[1], device="cpu")
    if not start.shape[0] or not parts.shape[1]:
        return masked, parts, of_group
    first, tokens = parts[:2]
    stops = pad(start, (0, 1), value=num_tokens)
    gaps = pad(lengths.cumsum(0), (1, 0))
    runs_before = search(start, first)
    # Which group, and how much of it, stands before each masked run.
    group = (search(first, start) - 1).clamp_(min=0)
    before = start - first[group] - (gaps[:-1] - gaps[runs_before[group]])
    cut = ((before > 0) & (before < tokens[group])).nonzero().view(-1)
    rests = parts[:, group[cut]]
    ends = start[cut] + lengths[cut]
    left = torch.minimum(rests[1] - before[cut], (stops[cut + 1] - ends).clamp_(min=0))
    rests[0], rests[1] = ends, left
    rests[2] += before[cut]
    rests[6] += rests[3]
    rests[3] = 0
    firsts = parts.clone()
    firsts[1] = torch.minimum(tokens, stops[runs_before] - first)
    return masked, torch.cat((firsts, rests), 1), torch.cat((of_group, group[cut]))
