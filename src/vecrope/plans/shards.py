"""Which tokens of a sequence each rank of a context-parallel group holds."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vecrope import checks

ShardLayout = Literal["contiguous", "zigzag", "zigzag_sequences"]


class Columns(NamedTuple):
    """Columns of a sequence: two runs at the most."""

    number: int
    first: int
    length: int  # of the first run
    jump: int  # columns between the two runs

    def indices(self, device: torch.device | str | None = None) -> Tensor:
        """Return (number,) int64, the columns."""
        number, first, length, jump = self
        columns = torch.arange(first, first + number, device=device)
        if length < number:
            columns[length:] += jump
        return columns


def shard_indices(
    seq_len: int,
    rank: int,
    world_size: int,
    layout: ShardLayout = "contiguous",
    *,
    cu_seqlens: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the indices along the sequence of the tokens that one rank holds.

    `"contiguous"` cuts the sequence into as many equal chunks as there are ranks, in order, as
    `torch.distributed.tensor.Shard` does. `"zigzag"` cuts it into twice as many and gives each rank
    one from the front and the one as far from the back, which evens out the work of causal
    attention, as PyTorch's `context_parallel` does with load balancing. `"zigzag_sequences"` does
    that with each packed sequence by itself: the THD layout of Megatron and TransformerEngine.

    Args:
        seq_len: tokens of the whole sequence, a multiple of `world_size`, or for `"zigzag"` of
            twice that.
        rank: of this process in the group, from 0.
        world_size: number of ranks in the group.
        layout: `"contiguous"`, `"zigzag"` or `"zigzag_sequences"`.
        cu_seqlens: (num_sequences + 1,) integers from 0 to `seq_len`, the bounds of the padded
            sequences, each a multiple of twice `world_size` long; for `"zigzag_sequences"`, which
            reads them.
        device: of the indices.

    Returns:
        (seq_len // world_size,) int64.

    Raises:
        TypeError: for numbers that are no ints.
        ValueError: for a layout that is not known, a rank that is not in the group, fewer tokens
            than ranks, and a length that is no multiple.

    Example:
        >>> import vecrope
        >>> [vecrope.shard_indices(8, rank, 2, "zigzag").tolist() for rank in range(2)]
        [[0, 1, 6, 7], [2, 3, 4, 5]]
    """
    _check_rank(layout, seq_len, rank, world_size)
    if layout == "zigzag_sequences":
        return _within_sequences(seq_len, rank, world_size, cu_seqlens).to(device)
    if cu_seqlens is not None:
        raise ValueError(f"cu_seqlens must be None in the {layout!r} layout")
    return _columns_of_rank(seq_len, rank, world_size, layout).indices(device)


def columns_of_rank(seq_len: int, rank: int, world_size: int, layout: ShardLayout) -> Columns:
    """Return the columns of `shard_indices` for a layout that does not depend on values."""
    _check_rank(layout, seq_len, rank, world_size)
    if layout == "zigzag_sequences":
        raise ValueError(
            f"layout must be 'contiguous' or 'zigzag' for the shard of a plan, got {layout!r}; "
            "index position_ids with vecrope.shard_indices, which takes cu_seqlens"
        )
    return _columns_of_rank(seq_len, rank, world_size, layout)


def _check_rank(layout: ShardLayout, seq_len: int, rank: int, world_size: int) -> None:
    checks.check_choice("layout", layout, ShardLayout)
    checks.check_int("seq_len", seq_len)
    checks.check_int("world_size", world_size, 1)
    checks.check_int("rank", rank)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to {world_size - 1}, got {rank}")


def _columns_of_rank(seq_len: int, rank: int, world_size: int, layout: ShardLayout) -> Columns:
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
    if layout == "contiguous":
        return Columns(length, rank * length, length, 0)
    return Columns(2 * length, rank * length, length, (num_chunks - 2 - 2 * rank) * length)


def _within_sequences(
    seq_len: int, rank: int, world_size: int, cu_seqlens: Tensor | None
) -> Tensor:
    if cu_seqlens is None:
        raise ValueError("cu_seqlens must be given in the 'zigzag_sequences' layout, got None")
    checks.check_integral("cu_seqlens", cu_seqlens)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(
            f"cu_seqlens must have shape (num_sequences + 1,), got {tuple(cu_seqlens.shape)}"
        )
    checks.check_has_values("cu_seqlens", cu_seqlens)
    checks.check_cu_seqlens(cu_seqlens, seq_len)
    bounds, multiple = cu_seqlens.tolist(), 2 * world_size
    parts = []
    for number, (start, stop) in enumerate(pairwise(bounds)):
        if (stop - start) % multiple:
            raise ValueError(
                f"sequence {number} must have a multiple of {multiple} tokens for {world_size} "
                f"ranks, got {stop - start}; pad it, with pad_sequences_to_multiple_of={multiple}"
            )
        if stop > start:
            parts.append(start + shard_indices(stop - start, rank, world_size, "zigzag"))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
