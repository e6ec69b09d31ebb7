"""Several plans as one, of the rows of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain, repeat

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.plans.plan import WIDE_FROM, RopeIndexPlan


def concatenate_plans(plans: Sequence[RopeIndexPlan]) -> RopeIndexPlan:
    """Return one plan of the rows of several, as packed sequences.

    On a device other than the CPU it copies some numbers a plan from the host, which may wait.

    Args:
        plans: on one device and of one dtype, with at least one among them.

    Raises:
        ValueError: if there is none, or if devices, dtypes, families or the precision of their
            seconds differ.
    """
    if not plans:
        raise ValueError("plans must hold at least one plan, got none")
    bounds = [plan.row_bounds for plan in plans]
    require_one("plans must have one device", {values.device for values in bounds})
    require_one("plans must have one dtype", {plan.dtype for plan in plans})
    require_one("plans must have one padding_value", {plan.padding_value for plan in plans})
    if len({type(plan) for plan in plans}) > 1:
        raise ValueError("plans must be of one family: some have groups and some have lines")
    *begins, num_tokens = accumulate((plan.num_tokens for plan in plans), initial=0)
    # The last bound of a plan is the first of the next.
    stops = [*accumulate(map(Tensor.numel, bounds))]
    own = chain.from_iterable(map(range, [0, *stops], (stop - 1 for stop in stops)))
    wide = num_tokens >= WIDE_FROM
    row_bounds = shifted(bounds, begins, wide=wide)
    row_starts = row_bounds[torch.tensor([*own], device="cpu").to(row_bounds.device)]
    return replace(
        plans[0]._joined(plans, begins, wide=wide),
        row_bounds=pad(row_starts, (0, 1), value=num_tokens),
        next_positions=torch.cat([plan.next_positions for plan in plans]),
        rope_deltas=torch.cat([plan.rope_deltas for plan in plans]),
        num_tokens=num_tokens,
        seq_len=None,
    )


def require_one(message: str, found: set[object], remedy: str = "") -> None:
    """Raise a ValueError if more than one thing is found."""
    if len(found) > 1:
        raise ValueError(f"{message}, got {sorted(map(str, found))}{remedy}")


def shifted(indices: Sequence[Tensor], begins: Sequence[int], *, wide: bool) -> Tensor:
    """Return token indices (n,) of several plans, one after the other, as those of one plan.

    Args:
        indices: of each plan.
        begins: where the tokens of each plan begin.
        wide: whether indices need 64 bits.
    """
    joined = torch.cat(tuple(indices))
    joined = joined.long() if wide else joined
    # Few numbers are spread faster by the host than by a tensor operator.
    shift = chain.from_iterable(map(repeat, begins, map(Tensor.numel, indices)))
    on_host = torch.tensor([*shift], dtype=joined.dtype, device="cpu")
    return joined.add_(on_host.to(joined.device))
