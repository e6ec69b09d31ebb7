"""The plan of a batch whose groups were found: the eager form.

An entry is start, tokens, base, position behind it, height, width, tokens of its group before, and
then the item of its group. Few entries are summed up on the host, many by tensor operators.
"""

from __future__ import annotations

from itertools import repeat
from operator import neg, sub

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.modality import set_indices
from vecrope.core.search import search
from vecrope.forms.eager.batch import Batch
from vecrope.forms.eager.find import Found
from vecrope.forms.eager.rope_index import outreaches, row_ends_of
from vecrope.plans.group_plan import GroupPlan
from vecrope.plans.table import WIDE_FROM, family_of
from vecrope.spec import MRopeSpec

# Up to so many entries, about, lists are faster than tensors.
FEW = 256
_ROW, _MASKED, _GROUP, _END = range(4)


def plan_of_groups(
    batch: Batch, found: Found | None, spec: MRopeSpec, time_scale: Tensor, dtype: torch.dtype
) -> GroupPlan:
    """Return the plan of a batch on the host's CPU.

    Args:
        batch: its ids and types are not read.
        found: its groups; None: there are none.
        spec: of the shared rule.
        time_scale: (2, I) or (0, I), of the items.
        dtype: of the positions.
    """
    masked = _masked_runs(batch)
    number = batch.num_rows + len(masked) + (0 if found is None else found.groups.number)
    make = _few_entries if number <= FEW else _many_entries
    table, row_ends = make(batch, found, masked, spec)
    lengths = batch.lengths()
    measured = batch.num_kept() if spec.delta_length == "valid" else lengths
    of_rows = [*zip(batch.bounds, lengths, row_ends, map(sub, row_ends, measured), strict=False)]
    scale = time_scale.new_empty((table.shape[0], 0))
    if time_scale.shape[0]:
        scale = pad(time_scale, (0, 1), value=1).t()[table[:, 7]]
    return GroupPlan(
        rows=torch.tensor(of_rows, dtype=torch.int64, device="cpu").view(-1, 4),
        num_tokens=batch.num_tokens,
        seq_len=batch.width,
        dtype=dtype,
        padding_value=spec.padding_value,
        family=family_of(spec),
        entries=table[:, :7].to(torch.int64 if batch.num_tokens >= WIDE_FROM else torch.int32),
        time_scale=scale,
    )


def _masked_runs(batch: Batch) -> list[tuple[int, int]]:
    """Return the start and the tokens of each masked run, none of which leaves its row."""
    kept, num_tokens = batch.kept, batch.num_tokens
    if kept is None or not num_tokens:
        return []
    edges = (set_indices(kept[1:] != kept[:-1]) + 1).tolist()
    places = sorted({*edges, *batch.bounds} - {num_tokens})
    is_kept = kept[torch.tensor(places, device="cpu")].tolist()
    runs = zip(places, [*places[1:], num_tokens], is_kept, strict=True)
    return [(start, stop - start) for start, stop, is_token in runs if not is_token]


def _few_entries(
    batch: Batch, found: Found | None, masked: list[tuple[int, int]], spec: MRopeSpec
) -> tuple[Tensor, list[int]]:
    """Return (E, 8) entries and the next position of each row, by a walk over them."""
    marks: list[tuple[int, ...]] = [(start, _ROW) for start in batch.bounds[:-1]]
    marks += [(start, _MASKED, tokens) for start, tokens in masked]
    text = 0
    if found is not None:
        items, groups = found.groups.items, found.groups
        text = len(items.area)
        numbers = groups.few if groups.many is None else groups.many.item.tolist()
        assert numbers is not None
        marks += zip(found.first.tolist(), repeat(_GROUP), numbers)
    entries: list[tuple[int, ...]] = []
    row_ends: list[int] = []
    # Tokens before which all is done, the position there, the largest of a block, and one more.
    token = position = reach = 0
    # What is left of a group, how much of it is done, and its first position and its item.
    left = before = base = item = 0
    for start, kind, *value in [*sorted(marks), (batch.num_tokens, _END)]:
        if left and start > token:
            part = min(left, start - token)
            size = items.height[item], items.width[item]
            entries.append((token, part, base, position, *size, before, item))
            token, left, before = token + part, left - part, before + part
        position += start - token
        token = start
        if kind in (_ROW, _END):
            row_ends.append(max(position, reach) if spec.span_rule == "hw" else position)
            position = reach = 0
            entries.append((start, 0, 0, 0, 1, 1, 0, text))
        elif kind == _MASKED:
            entries.append((start, *value, spec.padding_value, position, 1, 1, -value[0], text))
            token += value[0]
        else:
            (item,) = value
            left, before, base = items.area[item], 0, position
            position += items.advance[item]
            reach = max(reach, base + items.extent[item])
    return torch.tensor(entries[:-1], dtype=torch.int64, device="cpu").view(-1, 8), row_ends[1:]


def _many_entries(
    batch: Batch, found: Found | None, masked: list[tuple[int, int]], spec: MRopeSpec
) -> tuple[Tensor, list[int]]:
    """Return (E, 8) entries and the next position of each row, by cumulative sums over them.

    First they are columns: start, tokens, tokens of the group before, advance, height, width, item.
    In the order of the stream an entry takes the place of its tokens by its advance, and a row that
    of all before it by none.
    """
    num_kept, num_tokens = batch.num_kept(), batch.num_tokens
    row_ends = num_kept if found is None else row_ends_of(found, num_kept)
    text = 0 if found is None else len(found.groups.items.area)
    none, one = [0] * batch.num_rows, [1] * batch.num_rows
    begins = [0, *map(neg, row_ends[:-1])]
    rows = [batch.bounds[:-1], none, none, begins, one, one, [text] * batch.num_rows]
    tables = [torch.tensor(rows, dtype=torch.int64, device="cpu")]
    if masked:
        runs = torch.tensor(masked, device="cpu").t()
        start, tokens = runs
        zero, side = torch.zeros_like(start), torch.ones_like(start)
        tables.append(torch.stack((start, tokens, -tokens, zero, side, side, side * text)))
    if found is not None:
        items, nothing = found.groups.items, [0] * text
        columns = items.area, nothing, items.advance, items.height, items.width, range(text)
        groups = torch.cat((found.first.unsqueeze(0), found.groups.table(*columns)))
        if masked:
            groups = groups[:, groups[0].argsort()]
            tables.insert(0, _rests(batch, groups, runs))
        tables.append(groups)
    table = torch.cat(tables, 1)
    table = table[:, table[0].argsort(stable=True)]
    start, tokens, before, advance, height, width, item = table.unbind()
    moves = advance
    if masked:
        # A group, and what is left of one, ends where a masked run begins.
        tokens = torch.minimum(tokens, pad(start[1:], (0, 1), value=num_tokens) - start)
        moves = torch.where(before > 0, 0, advance)
    behind = start + tokens - (tokens - moves).cumsum(0)
    base = behind - advance
    if found is not None and outreaches(spec, items):
        extent = torch.tensor([*items.extent, 0], device="cpu")[item]
        reached = torch.where(item < text, base + extent, 0)
        ends = torch.tensor(row_ends, device="cpu")
        row_ends = ends.scatter_reduce_(0, batch.row_of(start), reached, "amax").tolist()
    base = base.masked_fill(before < 0, spec.padding_value)
    return torch.stack((start, tokens, base, behind, height, width, before, item), 1), row_ends


def _rests(batch: Batch, groups: Tensor, masked: Tensor) -> Tensor:
    """Return what masked runs leave of groups behind them, as columns like those of `groups`."""
    assert batch.kept is not None
    start, tokens = masked
    rank = batch.kept.cumsum(0)
    first = rank[groups[0]] - 1
    group = (search(first, rank[start]) - 1).clamp_(min=0)
    before = rank[start] - first[group]
    cut = set_indices((before > 0) & (before < groups[1, group]))
    rests = groups[:, group[cut]]
    rests[0] = (start + tokens)[cut]
    rests[1] -= before[cut]
    rests[2] = before[cut]
    return rests
