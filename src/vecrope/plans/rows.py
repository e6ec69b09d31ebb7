"""Rows of plans put together, taken out and replaced: each a fixed number of operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor

from vecrope.core.search import search, spread
from vecrope.forms.select import plan_tables, takes_kernels
from vecrope.plans.table import WIDE_FROM, PlanTable

_Plan = TypeVar("_Plan", bound=PlanTable)


def concatenate_plans(plans: Sequence[_Plan]) -> _Plan:
    """Return one plan of the rows of several, as packed sequences.

    On a device other than the CPU it copies two numbers a plan from the host, which may wait.

    Args:
        plans: at least one, of one family and convention, on one device and of one dtype. Those
            with videos in time have `second_per_grid_ts` of one precision.

    Raises:
        TypeError: for anything else than plans.
        ValueError: if there is none, or if they do not go together.
    """
    if not plans:
        raise ValueError("plans must hold at least one plan, got none")
    for at, plan in enumerate(plans):
        if not isinstance(plan, PlanTable):
            raise TypeError(f"plans must hold plans, got {type(plan).__name__} at {at}")
    first, tables = plans[0], [plan.rows for plan in plans]
    _require_one("family", [*map(attrgetter("family"), plans)])
    _require_one("dtype", [*map(attrgetter("dtype"), plans)])
    _require_one("device", [*map(attrgetter("device"), tables)])
    *begins, num_tokens = accumulate(map(attrgetter("num_tokens"), plans), initial=0)
    rows = torch.cat(tables)
    add_begins(rows[:, 0], tables, begins)
    joined = first._joined(plans, begins, wide=num_tokens >= WIDE_FROM)
    return replace(joined, rows=rows, num_tokens=num_tokens, seq_len=None)


def select_rows(plan: _Plan, rows: Tensor) -> _Plan:
    """Return the plan of some rows, (n,) int64 on the plan's device; reads their sizes."""
    selected = plan._selected_by_kernels(rows)
    if selected is not None:
        return selected
    taken = plan.rows[rows]
    start, tokens = taken[:, :2].long().unbind(1)
    first = search(plan._entry_starts, start - 1)
    number = search(plan._entry_starts, start + tokens - 1) - first
    num_tokens, num_entries = torch.stack((tokens.sum(), number.sum())).tolist()
    if not num_tokens:
        # No token asks for an entry, but a table has one.
        number[:1], num_entries = 1, min(1, len(rows))
        first = first.clamp(max=plan._entry_starts.shape[0] - 1)
    row = spread(number, num_entries)
    entry = torch.arange(num_entries, device=plan.device)
    entry += (first - (number.cumsum(0) - number))[row]
    begin = tokens.cumsum(0) - tokens
    shift = (begin - start)[row].to(plan._entry_starts.dtype)
    taken[:, 0] = begin
    selected = plan._gathered(entry, rows, shift)
    return replace(selected, rows=taken, num_tokens=num_tokens, seq_len=None)


def add_begins(column: Tensor, tables: Sequence[Tensor], begins: Sequence[int]) -> None:
    """Add to a column of joined tables, (n, k) or (n,), where the tokens of each plan begin."""
    # Sizes of all in one call each: there may be hundreds.
    width = tables[0].shape[1] if tables[0].dim() == 2 else 1
    sizes = [size // width for size in map(Tensor.numel, tables)]
    if takes_kernels(column):
        plan_tables().add_begins(column, sizes, begins)
        return
    begin = torch.tensor(begins, device="cpu").to(column.device)
    of_each = spread(torch.tensor(sizes, device="cpu").to(column.device), sum(sizes))
    column += begin[of_each]


def _require_one(name: str, found: Sequence[object]) -> None:
    """Raise a ValueError if one differs from the first."""
    if found.count(found[0]) < len(found):
        at, other = next(pair for pair in enumerate(found) if pair[1] != found[0])
        raise ValueError(f"plans must have one {name}, got {found[0]} and, in plan {at}, {other}")
