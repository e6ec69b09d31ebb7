"""Searching and spreading tables without starting torch's worker threads for small ones.

On a CPU torch starts its thread team for `repeat_interleave`, for the largest or smallest of a
dimension with its index and for `tril` and `triu` whatever the size, for `searchsorted` from 200
values on, and for what MKL computes (`trunc`, `sqrt`, `exp`) from some 100. Beside busy cores the
team takes milliseconds to assemble, a thousand times the work itself. So nothing in this package
calls these operators on a CPU below `PARALLEL_FROM` elements.
"""

from __future__ import annotations

import torch
from torch import Tensor

# From so many elements on threads pay: places to spread over, comparisons of a value with a bound.
PARALLEL_FROM = 2**16


def spread(sizes: Tensor, total: int) -> Tensor:
    """Return (total,) int64: the number of the entry that each place belongs to.

    `sizes` (n,) are the places of each entry, `total` their sum.
    """
    if total >= PARALLEL_FROM or not sizes.is_cpu or torch.compiler.is_compiling():
        return torch.repeat_interleave(sizes, output_size=total)
    return count_begun(sizes.cumsum(0)[:-1], total)


def spread_ranges(first: Tensor, sizes: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return (total,) int64 each: numbers in n ranges, which range each is of, and the number.

    `first` and `sizes` (n,) int64 are the first number of each range and how many it has.
    """
    owner = spread(sizes, total)
    offset = (first - sizes.cumsum(0) + sizes).index_select(0, owner)
    return owner, offset + torch.arange(total, device=sizes.device)


def search(bounds: Tensor, values: Tensor, *, right: bool = True) -> Tensor:
    """Return, in the shape of `values`, how many of the ascending `bounds` (n,) are not above each.

    It is `searchsorted(bounds, values, right=right)`: with `right=False` how many are below.
    """
    # Asked first: a graph is not to depend on sizes.
    is_traced = torch.compiler.is_compiling()
    if is_traced or not values.is_cpu or bounds.shape[0] * values.numel() >= PARALLEL_FROM:
        return torch.searchsorted(bounds.contiguous(), values.contiguous(), right=right)
    values = values.unsqueeze(-1)
    return (values >= bounds if right else values > bounds).sum(-1)


def count_begun(starts: Tensor, total: int) -> Tensor:
    """Return (total,) int64: how many of the ascending `starts` (n,) are not above 0, 1, 2, ..."""
    begun = torch.zeros(total + 1, dtype=torch.int64, device=starts.device)
    starts = starts.clamp(min=0, max=total).long()
    return begun.index_add_(0, starts, torch.ones_like(starts))[:-1].cumsum(0)


def compact(flags: Tensor, capacity: int, index_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the first `capacity` indices at which `flags` (N,) is set, and how many are, 0-d.

    The indices ascend, and are filled up with N; no value is read.
    """
    ranks = flags.cumsum(0, dtype=index_dtype)
    wanted = torch.arange(1, capacity + 1, dtype=index_dtype, device=flags.device)
    return search(ranks, wanted, right=False).to(index_dtype), ranks[-1]
