"""The tokens of one step of a serving engine, and the buffer that takes their positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vecrope.plans.arguments import check_not_negative, per_row
from vecrope.plans.table import PlanTable


def checked_step(
    num_computed_tokens: Tensor | Sequence[int],
    num_scheduled_tokens: Tensor | Sequence[int],
    plan: PlanTable,
    num_tokens: int | None,
    *,
    validate: bool,
) -> tuple[Tensor, Tensor, int]:
    """Return the tokens computed and scheduled, (B,) on the plan's device, and those of all rows.

    The arguments are those of `vecrope.RopeIndexPlan.step`.
    """
    computed = per_row("num_computed_tokens", num_computed_tokens, plan.num_rows)
    scheduled = per_row("num_scheduled_tokens", num_scheduled_tokens, plan.num_rows)
    if validate:
        check_not_negative("num_computed_tokens", computed)
        check_not_negative("num_scheduled_tokens", scheduled)
    if num_tokens is None or validate:
        total = int(scheduled.sum())
        num_tokens = total if num_tokens is None else num_tokens
        if num_tokens < total:
            raise ValueError(
                f"num_tokens must be at least {total}, the tokens of all rows, got {num_tokens}"
            )
    return computed.to(plan.device), scheduled.to(plan.device), num_tokens


def check_out(out: Tensor, plan: PlanTable, num_tokens: int) -> None:
    """Check that the positions of so many tokens can be written to a buffer."""
    num_axes, dtype = plan.num_axes, plan.dtype
    # Whole numbers would lose what is behind the point of fractions.
    others = "" if dtype.is_floating_point else ", int64 or int32"
    if out.dtype != dtype and not (others and out.dtype in (torch.int64, torch.int32)):
        raise TypeError(f"out must be {dtype}{others}, got {out.dtype}")
    if out.dim() != 2 or out.shape[0] != num_axes or out.shape[1] < num_tokens:
        raise ValueError(
            f"out must have shape ({num_axes}, at least {num_tokens}), got {tuple(out.shape)}"
        )
