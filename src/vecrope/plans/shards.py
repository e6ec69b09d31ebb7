"""Which tokens of a sequence each rank of a context-parallel group holds."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from vecrope.plans.arguments import require_int

ShardLayout = Literal["contiguous", "zigzag"]


def shard_indices(
    seq_len: int,
    rank: int,
    world_size: int,
    layout: ShardLayout = "contiguous",
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the indices along the sequence of the tokens that one rank holds.

    `"contiguous"` cuts the sequence into as many equal chunks as there are ranks, in order, as
    `torch.distributed.tensor.Shard` does. `"zigzag"` cuts it into twice as many and gives each rank
    one from the front and the one as far from the back, which evens out the work of causal
    attention, as PyTorch's `context_parallel` does with load balancing.

    Args:
        seq_len: tokens of the whole sequence, a multiple of `world_size`, or for `"zigzag"` of
            twice that.
        rank: of this process in the group, from 0.
        world_size: number of ranks in the group.
        layout: `"contiguous"` or `"zigzag"`.
        device: of the indices.

    Returns:
        (seq_len // world_size,) int64.

    Raises:
        TypeError: for a number that is no int.
        ValueError: for a layout that is not known, a rank that is not in the group, fewer tokens
            than ranks, and a length that is no multiple.

    Example:
        >>> import vecrope
        >>> [vecrope.shard_indices(8, rank, 2, "zigzag").tolist() for rank in range(2)]
        [[0, 1, 6, 7], [2, 3, 4, 5]]
    """
    if layout not in get_args(ShardLayout):
        known = " or ".join(map(repr, get_args(ShardLayout)))
        raise ValueError(f"layout must be {known}, got {layout!r}")
    for name, value in (("seq_len", seq_len), ("rank", rank), ("world_size", world_size)):
        require_int(name, value)
    if world_size < 1:
        raise ValueError(f"world_size must be at least 1, got {world_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to {world_size - 1}, got {rank}")
    num_chunks = world_size if layout == "contiguous" else 2 * world_size
    remedy = f"pad it, with pad_to_multiple_of={num_chunks}"
    if seq_len < world_size:
        raise ValueError(
            f"a sequence of {seq_len} tokens has none for each of {world_size} ranks; {remedy}"
        )
    if seq_len % num_chunks:
        raise ValueError(
            f"seq_len must be a multiple of {num_chunks} for {world_size} ranks in the "
            f"{layout!r} layout, got {seq_len}; {remedy}"
        )
    length = seq_len // num_chunks
    head = torch.arange(rank * length, (rank + 1) * length, device=device)
    if layout == "contiguous":
        return head
    return torch.cat((head, head + (num_chunks - 1 - 2 * rank) * length))
