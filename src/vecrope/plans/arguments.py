"""What the arguments of a plan's methods must satisfy, and the messages that say where not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vecrope.checks import check_int, check_tensor
from vecrope.plans.table import PlanTable

# So that no position wraps, whatever the dtype.
MAX_START = 2**30


def check_integers(name: str, values: Tensor) -> None:
    """Check the dtype of indices and numbers."""
    check_tensor(name, values)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {values.dtype}")


def check_not_negative(name: str, values: Tensor) -> None:
    """Check integers; synchronises where they are not on a CPU."""
    if values.numel() and int(values.amin()) < 0:
        at = f" for row {int((values < 0).nonzero()[0, 0])}" if values.dim() == 1 else ""
        raise ValueError(f"{name} must not be negative, got {int(values.amin())}{at}")


def per_row(
    name: str, numbers: Tensor | Sequence[int], num_rows: int | None, of: str = "the plan"
) -> Tensor:
    """Return a number for each row as (num_rows,), where they are; None: of any number."""
    if not isinstance(numbers, Tensor):
        if not isinstance(numbers, Sequence):
            found = type(numbers).__name__
            raise TypeError(f"{name} must be a list or a tensor of integers, got {found}")
        # Without a number there is none that says its type.
        dtype = None if len(numbers) else torch.int64
        numbers = torch.tensor(numbers, dtype=dtype, device="cpu")
    check_integers(name, numbers)
    if num_rows is None and numbers.dim() != 1:
        raise ValueError(f"{name} must have shape (n,), got {tuple(numbers.shape)}")
    if num_rows is not None and numbers.shape != (num_rows,):
        raise ValueError(
            f"{name} must have shape ({num_rows},), a number for each row of {of}, "
            f"got {tuple(numbers.shape)}"
        )
    return numbers


def checked_index(token_index: Tensor, plan: PlanTable, *, with_rows: bool, check: bool) -> Tensor:
    """Return indices of tokens on the plan's device, in 64 bits: a byte is no index but a mask."""
    check_integers("token_index", token_index)
    num_rows, shape = plan.num_rows, tuple(token_index.shape)
    if not with_rows and shape[:1] != (num_rows,):
        raise ValueError(
            f"token_index must have shape ({num_rows}, ...), a dimension for the rows first, "
            f"got {shape}; or give rows"
        )
    if check:
        check_not_negative("token_index", token_index)
    return token_index.to(plan.device, torch.int64)


def check_rows(rows: Tensor, plan: PlanTable) -> None:
    """Check numbers of rows; synchronises where they are not on a CPU."""
    if rows.numel():
        least, most = int(rows.amin()), int(rows.amax())
        if least < 0 or most >= plan.num_rows:
            wrong = least if least < 0 else most
            raise ValueError(f"rows must be from 0 to {plan.num_rows - 1}, got {wrong}")


def checked_rows(rows: Tensor, plan: PlanTable, *, check: bool = True) -> Tensor:
    """Return numbers of rows on the plan's device, in 64 bits."""
    check_integers("rows", rows)
    if check:
        check_rows(rows, plan)
    return rows.to(plan.device, torch.int64)


def checked_start(start: int | Tensor, plan: PlanTable) -> int | Tensor:
    """Return the number of tokens that have been decoded, a number or (B, 1) on the device."""
    if not isinstance(start, Tensor):
        check_int("start", start, 0, MAX_START)
        return start
    check_integers("start", start)
    if start.dim() > 1 or (start.dim() == 1 and start.shape[0] != plan.num_rows):
        raise ValueError(f"start must have shape ({plan.num_rows},), got {tuple(start.shape)}")
    if start.is_cpu and type(start) is Tensor and not torch.compiler.is_compiling():
        check_not_negative("start", start)
        if start.numel() and int(start.amax()) >= MAX_START:
            raise ValueError(f"start must be less than 2**30, got {int(start.amax())}")
    return start.to(plan.device).unsqueeze(-1)


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
