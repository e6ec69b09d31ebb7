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
    if not isinstance(plans, Sequence):
        given = type(plans).__name__
        if isinstance(plans, PlanTable):
            given = f"{plans!r}; give [plan] for one"
        raise TypeError(f"plans must be a sequence of plans, got {given}")
    if not plans:
        raise ValueError("plans must hold at least one plan, got none")
    if not all(issubclass(plan_class, PlanTable) for plan_class in {*map(type, plans)}):
        at, other = next(pair for pair in enumerate(plans) if not isinstance(pair[1], PlanTable))
        raise TypeError(f"plans must hold plans, got {type(other).__name__} at {at}")
    # There may be hundreds of plans: all that is done for each is a call of a C function.
    rows, entries, num_tokens, *kinds = zip(*map(_FIELDS, plans), strict=True)
    if any(len({*found}) > 1 for found in kinds):
        _refuse(plans)
    try:
        joined, joined_entries = torch.cat(rows), torch.cat(entries)
        own = plans[0]._joined(plans, joined, len(joined_entries))
    except RuntimeError:  # of another device, or with other columns
        _refuse(plans)
        raise
    *begins, total = accumulate(num_tokens, initial=0)
    if total >= WIDE_FROM and not joined_entries.is_floating_point():
        joined_entries = joined_entries.long()
    if takes_kernels(joined_entries):
        add_begins = plan_kernels().add_begins
        add_begins(joined[:, 0], [*map(len, rows)], begins)
        add_begins(joined_entries[:, 0], [*map(len, entries)], begins)
    else:
        torch.sub(joined[:, 1].cumsum(0), joined[:, 1], out=joined[:, 0])
        # By how much more the entries of each plan begin later than those of the plan before it.
        of_plans = [*map(Tensor.numel, entries)], num_tokens
        # What is read from bytes is no tensor of a fake device, or of a graph.
        is_plain = plans[0]._reads_values
        numbers = host_table("q", of_plans) if is_plain else torch.tensor(of_plans, device="cpu")
        sizes, later = numbers.to(joined.device).unbind()
        ends = sizes.cumsum(0) // joined_entries.shape[1]
        begun = joined_entries.new_zeros(len(joined_entries) + 1)
        begun.index_add_(0, ends, later.to(begun)).cumsum_(0)
        joined_entries[:, 0].add_(begun[:-1])
    tables = {"rows": joined, "entries": joined_entries, "num_tokens": total, "seq_len": None}
    return replace(plans[0], **tables, **own)


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
