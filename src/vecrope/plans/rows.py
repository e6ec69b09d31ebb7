"""Rows of plans put together, taken out and replaced: each a fixed number of operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor

from vecrope.core.search import search, spread_ranges
from vecrope.forms.select import plan_kernels, takes_kernels
from vecrope.plans.table import WIDE_FROM, PlanTable

_Plan = TypeVar("_Plan", bound=PlanTable)
_FIELDS = attrgetter("rows", "entries", "num_tokens", "family", "dtype")


def concatenate_plans(plans: Sequence[_Plan]) -> _Plan:
    """Return one plan of the rows of several, as packed sequences.

    On another device than the CPU it copies some numbers of each plan from the host, and may wait.

    Args:
        plans: at least one, of one family and convention, on one device and of one dtype. Those
            with videos in time have `second_per_grid_ts` of one precision.

    Raises:
        TypeError: for anything else than plans.
        ValueError: if there is none, or if they do not go together.
    """
    if not plans:
        raise ValueError("plans must hold at least one plan, got none")
    if not all(issubclass(plan_class, PlanTable) for plan_class in {*map(type, plans)}):
        at, other = next(pair for pair in enumerate(plans) if not isinstance(pair[1], PlanTable))
        raise TypeError(f"plans must hold plans, got {type(other).__name__} at {at}")
    # There may be hundreds of plans: all that is done for each is a call of a C function.
    rows, entries, num_tokens, *kinds = zip(*map(_FIELDS, plans), strict=True)
    kinds.append(tuple(map(attrgetter("device"), rows)))
    for name, found in zip(("family", "dtype", "device"), kinds, strict=True):
        if len({*found}) > 1:
            at, other = next(pair for pair in enumerate(found) if pair[1] != found[0])
            raise ValueError(
                f"plans must have one {name}, got {found[0]} and, in plan {at}, {other}"
            )
    first, width = plans[0], entries[0].shape[1]
    sizes = [size // width for size in map(Tensor.numel, entries)]
    own = first._joined(plans, sum(sizes))
    joined, joined_entries = torch.cat(rows), torch.cat(entries)
    *begins, total = accumulate(num_tokens, initial=0)
    if total >= WIDE_FROM and not joined_entries.is_floating_point():
        joined_entries = joined_entries.long()
    if takes_kernels(joined_entries):
        add_begins = plan_kernels().add_begins
        add_begins(joined[:, 0], [*map(len, rows)], begins)
        add_begins(joined_entries[:, 0], sizes, begins)
    else:
        torch.sub(joined[:, 1].cumsum(0), joined[:, 1], out=joined[:, 0])
        # By how much more the entries of each plan begin later than those of the plan before it.
        begun = torch.zeros(sum(sizes) + 1, dtype=torch.int64, device=joined.device)
        numbers = torch.tensor([*accumulate(sizes), *num_tokens], device="cpu")
        ends, later = numbers.to(joined.device).view(2, -1).unbind()
        joined_entries[:, 0].add_(begun.index_add_(0, ends, later).cumsum_(0)[:-1])
    tables = {"rows": joined, "entries": joined_entries, "num_tokens": total, "seq_len": None}
    return replace(first, **tables, **own)


def select_rows(plan: _Plan, rows: Tensor) -> _Plan:
    """Return the plan of some rows, (n,) int64 on the plan's device; reads their sizes."""
    selected = plan._selected_by_kernels(rows)
    if selected is not None:
        return selected
    taken = plan.rows.index_select(0, rows)
    start, tokens = taken[:, :2].long().unbind(1)
    first, stop = search(plan._entry_starts, torch.stack((start, start + tokens)) - 1)
    number = stop - first
    num_tokens, num_entries = torch.stack((tokens, number)).sum(1).tolist()
    if not num_tokens:
        # No token asks for an entry, but a table has one.
        number[:1], num_entries = 1, min(1, len(rows))
        first = first.clamp(max=len(plan.entries) - 1)
    row, entry = spread_ranges(first, number, num_entries)
    entries, begin = plan.entries.index_select(0, entry), tokens.cumsum(0) - tokens
    entries[:, 0].add_((begin - start).index_select(0, row))
    taken[:, 0].copy_(begin)
    own = plan._selected(entry, rows)
    return replace(plan, rows=taken, entries=entries, num_tokens=num_tokens, seq_len=None, **own)
