"""The tables of some rows of a plan, and of several plans in one: the host side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from vecrope.forms.triton import constants, kernels
from vecrope.forms.triton.launch import device_of


def select_entries(
    rows: Tensor, entries: Tensor, time_scale: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the rows, entries and time scale of some rows of a plan, and their tokens.

    Reads how many tokens and entries there are, for which it waits.

    Args:
        rows: (B, 5) int64.
        entries: (E, 7).
        time_scale: (E, 2) or (E, 0).
        chosen: (n,) int64, at least one.
    """
    number, num_entries = chosen.shape[0], entries.shape[0]
    entries = entries.contiguous()
    numbers = rows.new_empty(5 * number + 2)
    taken, totals = numbers[: 5 * number].view(number, 5), numbers[5 * number :]
    spans = rows.new_empty((number, 3), dtype=torch.int32)
    scaled = time_scale.shape[1]
    with device_of(rows):
        kernels.choose_rows[(1, 1, 1)](
            entries, rows, chosen, taken, spans, totals, num_entries, num_entries.bit_length(),
            number, constants.CHUNK,
        )  # fmt: skip
        num_tokens, copied = totals.tolist()
        # No token asks for an entry, but a table has one.
        out = entries.new_empty((copied, 7)) if num_tokens else entries[:1].clone()
        scale = time_scale.new_empty((out.shape[0], scaled))
        kernels.copy_entries[(number, 1, 1)](
            entries, time_scale if scaled else None, rows, chosen, taken, spans, out,
            scale if scaled else None, *time_scale.stride(), constants.BLOCK,
        )  # fmt: skip
    return taken, out, scale, num_tokens


def add_begins(column: Tensor, sizes: Sequence[int], begins: Sequence[int]) -> None:
    """Add a number to each of several parts of a column (n,), one after the other.

    Copies three numbers a part from the host, which may wait.
    """
    stops = [*accumulate(sizes)]
    starts = [0, *stops[:-1]]
    parts = torch.tensor([starts, stops, begins], device="cpu").to(column.device)
    shares = -(-max(sizes) // constants.BLOCK)
    with device_of(column):
        kernels.add_begins[(len(sizes), max(min(shares, 16), 1), 1)](
            column, parts, column.stride(0), len(sizes), constants.BLOCK
        )
