"""What the arguments of a plan's methods must satisfy, and the messages that say where not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vecrope.checks import INTEGRAL, check_has_values, check_tensor, conversion

# So that no position wraps, whatever the dtype.
MAX_START = 2**30


def check_integers(name: str, values: Tensor) -> None:
    """Check the dtype of indices and numbers."""
    check_tensor(name, values)
    if values.dtype == torch.bool or values.dtype not in INTEGRAL:
        raise TypeError(f"{name} must be integers, got {values.dtype}")


def check_range(name: str, values: Tensor, below: int | None = None) -> None:
    """Check that integers are not negative, and below a limit; synchronises off a CPU."""
    if not values.numel():
        return
    check_has_values(name, values)
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
        try:
            # Without a number there is none that says its type.
            dtype = None if len(numbers) else torch.int64
            numbers = torch.tensor(numbers, dtype=dtype, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must hold integers of 64 bits, got {numbers!r}") from error
    check_integers(name, numbers)
    if numbers.dim() != 1 or num_rows not in (None, len(numbers)):
        each = "n" if num_rows is None else num_rows
        what = "" if num_rows is None else f" a number for each row of {of},"
        raise ValueError(f"{name} must have shape ({each},),{what} got {tuple(numbers.shape)}")
    return numbers


def check_out(out: Tensor, num_axes: int, num_tokens: int, dtype: torch.dtype) -> None:
    """Check that positions of a dtype, (num_axes, num_tokens), can be written to a buffer."""
    check_tensor("out", out)
    # Whole numbers would lose what is behind the point of fractions.
    others = "" if dtype.is_floating_point else ", int64 or int32"
    if out.dtype != dtype and not (others and out.dtype in (torch.int64, torch.int32)):
        raise TypeError(f"out must be {dtype}{others}, got {out.dtype}")
    if out.dim() != 2 or out.shape[0] != num_axes or out.shape[1] < num_tokens:
        raise ValueError(
            f"out must have shape ({num_axes}, at least {num_tokens}), got {tuple(out.shape)}"
        )
