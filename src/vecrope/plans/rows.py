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
from vecrope.forms.select import plan_kernels, takes_kernels
from vecrope.plans.table import WIDE_FROM, PlanTable

_Plan = TypeVar("_Plan", bound=PlanTable)


def concatenate_plans(plans: Sequence[_Plan]) -> _Plan:
    """Return one plan of the rows of several, as packed sequences.

    On a device other than the CPU it copies three numbers a plan from the host, which may wait.

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
    first = plans[0]
    rows, entries = ([*map(attrgetter(name), plans)] for name in ("rows", "entries"))
    _require_one("family", [*map(attrgetter("family"), plans)])
    _require_one("dtype", [*map(attrgetter("dtype"), plans)])
    _require_one("device", [*map(attrgetter("device"), rows)])
    *begins, num_tokens = accumulate(map(attrgetter("num_tokens"), plans), initial=0)
    own = first._joined(plans, sum(map(len, entries)))
    joined = torch.cat(rows), torch.cat(entries)
    if num_tokens >= WIDE_FROM and not joined[1].is_floating_point():
        joined = joined[0], joined[1].long()
    for table, tables in zip(joined, (rows, entries), strict=True):
        _add_begins(table[:, 0], tables, begins)
    return replace(
        first, rows=joined[0], entries=joined[1], num_tokens=num_tokens, seq_len=None, **own
    )


def select_rows(plan: _Plan, rows: Tensor) -> _Plan:
    """Return the plan of some rows, (n,) int64 on the plan's device; reads their sizes."""
    selected = plan._selected_by_kernels(rows)
    if selected is not None:
        return selected
    taken, starts = plan.rows[rows], plan._entry_starts
    start, tokens = taken[:, :2].long().unbind(1)
    first = search(starts, start - 1)
    number = search(starts, start + tokens - 1) - first
    num_tokens, num_entries = torch.stack((tokens.sum(), number.sum())).tolist()
    if not num_tokens:
        # No token asks for an entry, but a table has one.
        number[:1], num_entries = 1, min(1, len(rows))
        first = first.clamp(max=len(starts) - 1)
    row = spread(number, num_entries)
    entry = torch.arange(num_entries, device=plan.device)
    entry += (first - (number.cumsum(0) - number))[row]
    entries, begin = plan.entries[entry], tokens.cumsum(0) - tokens
    entries[:, 0] += (begin - start)[row].to(entries.dtype)
    taken[:, 0] = begin
    own = plan._selected(entry, rows)
    return replace(plan, rows=taken, entries=entries, num_tokens=num_tokens, seq_len=None, **own)


def _add_begins(column: Tensor, tables: Sequence[Tensor], begins: Sequence[int]) -> None:
    """Add to a column of joined tables (n, k) where the tokens of each plan begin."""
    width = tables[0].shape[1]
    # Sizes of all in one call each: there may be hundreds.
    sizes = [size // width for size in map(Tensor.numel, tables)]
    if takes_kernels(column):
        plan_kernels().add_begins(column, sizes, begins)
        return
    size, begin = torch.tensor([sizes, begins], device="cpu").to(column.device)
    column += begin[spread(size, sum(sizes))]


def _require_one(name: str, found: Sequence[object]) -> None:
    """Raise a ValueError if one differs from the first."""
    if found.count(found[0]) < len(found):
        at, other = next(pair for pair in enumerate(found) if pair[1] != found[0])
        raise ValueError(f"plans must have one {name}, got {found[0]} and, in plan {at}, {other}")
