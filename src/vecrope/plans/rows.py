"""Rows of several plans put together, by a fixed number of operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor

from vecrope.forms.select import plan_kernels, takes_kernels
from vecrope.plans.table import WIDE_FROM, PlanTable, host_table

_Plan = TypeVar("_Plan", bound=PlanTable)


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
    if not isinstance(plans, Sequence):
        given = type(plans).__name__
        if isinstance(plans, PlanTable):
            given = f"{plans!r}; give [plan] for one"
        raise TypeError(f"plans must be a sequence of plans, got {given}")
    if not plans:
        raise ValueError("plans must hold at least one plan, got none")
    # There may be hundreds of plans: comprehensions read an attribute of each the fastest.
    try:
        rows, entries = [plan.rows for plan in plans], [plan.entries for plan in plans]
        num_tokens = [plan.num_tokens for plan in plans]
        families, dtypes = [plan.family for plan in plans], [plan.dtype for plan in plans]
    except AttributeError:
        at, other = next(pair for pair in enumerate(plans) if not isinstance(pair[1], PlanTable))
        raise TypeError(f"plans must hold plans, got {type(other).__name__} at {at}") from None
    if families.count(families[0]) + dtypes.count(dtypes[0]) < 2 * len(plans):
        _refuse(plans)
    try:
        joined, joined_entries = torch.cat(rows), torch.cat(entries)
        own = plans[0]._joined(plans, joined, len(joined_entries))
    except RuntimeError:  # of another device, or with other columns
        _refuse(plans)
        raise
    total = sum(num_tokens)
    if total >= WIDE_FROM and not joined_entries.is_floating_point():
        joined_entries = joined_entries.long()
    start, length = joined.unbind(1)[:2]
    if takes_kernels(joined_entries):
        add_begins, begins = plan_kernels().add_begins, [*accumulate(num_tokens, initial=0)][:-1]
        add_begins(start, [*map(len, rows)], begins)
        add_begins(joined_entries[:, 0], [*map(len, entries)], begins)
    else:
        torch.sub(length.cumsum(0), length, out=start)
        # By how much more the entries of each plan begin later than those of the plan before it.
        of_plans = [*map(Tensor.numel, entries)], num_tokens
        # What is read from bytes is no tensor of a fake device, or of a graph.
        is_plain = plans[0]._reads_values
        numbers = host_table("q", of_plans) if is_plain else torch.tensor(of_plans, device="cpu")
        sizes, later = numbers.to(start.device).unbind()
        ends = sizes.cumsum(0) // joined_entries.shape[1]
        begun = later.new_zeros(len(joined_entries) + 1)
        joined_entries[:, 0].add_(begun.index_add_(0, ends, later).cumsum_(0)[:-1])
    own |= {"rows": joined, "entries": joined_entries, "num_tokens": total, "seq_len": None}
    return replace(plans[0], **own)


def check_plan(name: str, value: object) -> None:
    """Check that an argument is a plan."""
    if not isinstance(value, PlanTable):
        raise TypeError(f"{name} must be a plan, got {type(value).__name__}")


def _refuse(plans: Sequence[_Plan]) -> None:
    """Raise a ValueError that says which plan differs from the first, if any does, and in what."""
    of_kinds: dict[str, Callable[[_Plan], object]] = {
        "family": attrgetter("family"),
        "dtype": attrgetter("dtype"),
        "device": attrgetter("device"),
        "number of columns": lambda plan: [getattr(plan, of).shape[1] for of in plan._OF_ENTRIES],
    }
    for name, of in of_kinds.items():
        for at, plan in enumerate(plans):
            if of(plan) != of(plans[0]):
                if name == "family" and plan.family.split()[0] == plans[0].family.split()[0]:
                    name = "convention"
                raise ValueError(
                    f"plans must have one {name}, got {of(plans[0])} and, in plan {at}, {of(plan)}"
                )
