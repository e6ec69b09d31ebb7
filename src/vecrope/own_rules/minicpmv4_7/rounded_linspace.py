"""A few positions spread evenly over more: `torch.linspace(...).round()`, in whole numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope.core.search import search

# Of numbers with a fixed point: so many bits after it.
_POINT = 40
# (extent - 1) * (count - 1) from which the order of float32 operations decides on more than ties.
LIMIT = 2**20


def spread(index: Tensor, extent: Tensor, count: Tensor) -> Tensor:
    """Return where each of `count` positions lies among `extent`, the first and last at the ends.

    It is `torch.linspace(0, extent - 1, count)[index].round()`, bit for bit, as float32 gives it
    on a CPU: a step rounded to 24 bits, multiples of it from the nearer end, rounded to 24 bits
    too, and then half to even. A sum of exact fractions would differ where a position lies halfway
    between two others. In whole numbers no compiler can reorder, fuse or approximate it.

    Args:
        index: int64, from 0 to `count - 1`.
        extent: int64, at least 1.
        count: int64, at least 1. `(extent - 1) * (count - 1)` must be below `LIMIT`, or `extent`
            and `count` equal and below 2**16.

    Returns:
        int64, of the shape that the arguments broadcast to.

    Example:
        >>> spread(torch.arange(4), torch.tensor(7), torch.tensor(4))
        tensor([0, 2, 4, 6])
        >>> spread(torch.arange(3), torch.tensor(4), torch.tensor(3))
        tensor([0, 2, 3])
    """
    last = (extent - 1) << _POINT
    step = _quotient(last, (count - 1).clamp(min=1))
    near_start = index < count // 2
    way = _float32(step * torch.where(near_start, index, count - 1 - index))
    position = torch.where(near_start, way, _float32(last - way))
    return torch.where(count == 1, 0, _shifted(position, torch.full_like(position, _POINT)))


def _quotient(numerator: Tensor, divisor: Tensor) -> Tensor:
    """Return the quotient to 24 significant bits."""
    excess = _excess_bits(numerator // divisor)
    unit = divisor << excess
    quotient = numerator // unit
    twice_left = 2 * (numerator - quotient * unit)
    up = (twice_left > unit) | ((twice_left == unit) & (quotient % 2 == 1))
    return (quotient + up) << excess


def _float32(value: Tensor) -> Tensor:
    """Return a value to 24 significant bits."""
    excess = _excess_bits(value)
    return _shifted(value, excess) << excess


def _excess_bits(value: Tensor) -> Tensor:
    powers = 1 << torch.arange(63, device=value.device)
    bits = search(powers, value)
    return (bits - 24).clamp(min=0)


def _shifted(value: Tensor, bits: Tensor) -> Tensor:
    """Return a value without its last bits, rounded half to even."""
    odd = (value >> bits) & (bits > 0)
    below_half = ((1 << bits) - 1) >> 1
    return (value + below_half + odd) >> bits
