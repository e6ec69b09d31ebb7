"""Searching and spreading tables without starting torch's worker threads for small ones.

On a CPU `searchsorted` and `repeat_interleave` hand their work to the thread team however small it
is. Beside busy cores the team takes milliseconds to assemble, a thousand times the work itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

# From so many places to spread over, or comparisons of a value with a bound, on threads pay.
PARALLEL_FROM = 2**16


def spread(sizes: Tensor, total: int) -> Tensor:
    """Return (total,) int64: the number of the entry that each of `total` places belongs to.

    Args:
        sizes: (n,) places of each entry, which sum to `total`.
        total: the number of places.
    """
    if total >= PARALLEL_FROM or not sizes.is_cpu or torch.compiler.is_compiling():
        return torch.repeat_interleave(sizes, output_size=total)
    ends = sizes.cumsum(0)
    # The place behind the last takes what begins there: entries of no size at the end.
    begun = torch.zeros(total + 1, dtype=torch.int64, device=sizes.device)
    begun.index_add_(0, ends[:-1], torch.ones_like(ends[:-1]))
    return begun[:-1].cumsum(0)


def search(bounds: Tensor, values: Tensor) -> Tensor:
    """Return, in the shape of `values`, how many of the ascending `bounds` (n,) are not above each.

    It is `searchsorted(bounds, values, right=True)`.
    """
    work = bounds.shape[0] * values.numel()
    if work >= PARALLEL_FROM or not values.is_cpu or torch.compiler.is_compiling():
        return torch.searchsorted(bounds.contiguous(), values.contiguous(), right=True)
    return (values.unsqueeze(-1) >= bounds).sum(-1)
