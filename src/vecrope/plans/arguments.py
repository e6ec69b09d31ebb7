"""What the arguments of a plan's methods must satisfy, and the messages that say where not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vecrope.checks import check_int, check_tensor, conversion
from vecrope.plans.table import PlanTable

# So that no position wraps, whatever the dtype.
_MAX_START = 2**30


def check_integers(name: str, values: Tensor) -> None:
    """Check the dtype of indices and numbers."""
    check_tensor(name, values)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {values.dtype}")


def check_range(name: str, values: Tensor, below: int | None = None) -> None:
    """Check that integers are not negative, and below a limit; synchronises off a CPU."""
    if not values.numel():
        return
    least, most = int(values.amin()), 0 if below is None else int(values.amax())
    if least < 0 or (below is not None and most >= below):
        wrong = least if least < 0 else most
        where = (values == wrong).nonzero()[0].tolist()
        limits = "not be negative" if below is None else f"be from 0 to {below - 1}"
        raise ValueError(f"{name} must {limits}, got {wrong} at {where}")


def numbers_of_rows(
    name: str, numbers: Tensor | Sequence[int], num_rows: int | None, of: str = "the plan"
) -> Tensor:
    """Return a number for each row as (num_rows,), where they are; None: of any number."""
    if not isinstance(numbers, Tensor):
        if not isinstance(numbers, Sequence) or isinstance(numbers, str):
            found = type(numbers).__name__ + conversion(name, numbers)
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


def checked_start(start: int | Tensor, plan: PlanTable) -> int | Tensor:
    """Return the number of tokens that have been decoded, a number or (B, 1) on the device."""
    if not isinstance(start, Tensor):
        check_int("start", start, 0, _MAX_START)
        return start
    check_integers("start", start)
    if start.dim() and start.shape != (len(plan),):
        raise ValueError(f"start must have shape ({len(plan)},), got {tuple(start.shape)}")
    if start.is_cpu and type(start) is Tensor and not torch.compiler.is_compiling():
        check_range("start", start, _MAX_START)
    return start.to(plan.device).unsqueeze(-1)


def checked_total(scheduled: Tensor, num_tokens: int | None) -> int:
    """Return how many tokens a step has, of (B,) tokens of the rows, which it reads."""
    total = int(scheduled.sum())
    num_tokens = total if num_tokens is None else num_tokens
    if num_tokens < total:
        raise ValueError(
            f"num_tokens must be at least {total}, the tokens of all rows, got {num_tokens}"
        )
    return num_tokens


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
