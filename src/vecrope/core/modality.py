"""What each token is: text, image, video or masked."""

from __future__ import annotations

import torch
from torch import Tensor

TEXT, IMAGE, VIDEO, MASKED = 0, 1, 2, 3
# The number of open markers at the end of a row whose markers nobody has looked at.
UNKNOWN_MARKERS = -(2**31)


def compact(
    flags: Tensor, capacity: int | None, index_dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Return the ascending indices at which `flags` (N,) is set.

    With a capacity, which may be too small, no value is read: there are `capacity` indices, the
    first ones, then N where there are fewer; and the number of flags set is returned, too, 0-d.
    """
    if capacity is None:
        return flags.nonzero().view(-1), None
    num_tokens = flags.shape[0]
    ranks = flags.cumsum(0, dtype=index_dtype)
    # One spare slot takes every write that is not a flag's, or is beyond the capacity.
    slots = torch.where(flags & (ranks <= capacity), ranks - 1, capacity)
    table = torch.full((capacity + 1,), num_tokens, dtype=index_dtype, device=flags.device)
    table[slots] = torch.arange(num_tokens, dtype=index_dtype, device=flags.device)
    return table[:capacity], ranks[-1]
