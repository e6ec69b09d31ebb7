"""Plans by kernels, the host side: positions read off, rows selected, plans joined."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from vecrope.forms.triton import constants, kernels
from vecrope.forms.triton.launch import device_of

# Programs that share the tokens of one request in a step, at the most.
_SHARES = 16


# The tensors of a `GroupPlan`: rows, entries and time scale; and the dtype of its positions.
Tables = tuple[Tensor, Tensor, Tensor, torch.dtype]


def expand_rows(tables: Tables, token_index: Tensor | range, row_index: Tensor | None) -> Tensor:
    """Return the positions (3, ...) of tokens by their row and index in it.

    Args:
        tables: of a plan of at least one row.
        token_index: integers (...), or the same range in every row.
        row_index: integers, broadcast with `token_index`; None: the first dimension is the rows.
    """
    rows, *_, dtype = tables
    num_rows, first, index = rows.shape[0], 0, None
    shape: tuple[int, ...]
    if isinstance(token_index, range):
        first, shape = token_index.start, (num_rows, len(token_index))
    else:
        index = token_index
        if row_index is not None:
            index, row_index = torch.broadcast_tensors(index, row_index)  # type: ignore[no-untyped-call]
        index, shape = index.contiguous(), tuple(index.shape)
    out = rows.new_empty((3, *shape), dtype=dtype)
    num_places = out.numel() // 3
    with device_of(out):
        if num_places:
            kernels.expand_rows[(-(-num_places // constants.BLOCK), 1, 1)](
                *_table(tables), rows,
                index, None if row_index is None else row_index.contiguous(), out,
                *_search(tables), num_rows, num_places, num_places // num_rows, first,
                constants.BLOCK,
            )  # fmt: skip
    return out


def expand_step(
    tables: Tables, computed: Tensor, scheduled: Tensor, num_tokens: int, out: Tensor | None
) -> Tensor:
    """Return the positions (3, num_tokens) of a step, in the first columns of `out`.

    Args:
        tables: of a plan of at least one row.
        computed: (B,) integers, as for `vecrope.RopeIndexPlan.step`.
        scheduled: (B,) integers, likewise.
        num_tokens: columns of the answer.
        out: (3, at least `num_tokens`) integers, each row contiguous; None: new.
    """
    rows, *_, dtype = tables
    num_rows = computed.shape[0]
    if out is None:
        out = rows.new_empty((3, num_tokens), dtype=dtype)
    shares = min(-(-num_tokens // constants.BLOCK), _SHARES)
    with device_of(out):
        if num_tokens:
            kernels.expand_step[(num_rows, shares, 1)](
                *_table(tables), rows, computed.contiguous(), scheduled.contiguous(), out,
                *_search(tables), num_rows, num_tokens, out.stride(0),
                constants.BLOCK, constants.CHUNK,
            )  # fmt: skip
    return out[:, :num_tokens]


def expand_columns(
    tables: Tables,
    num_rows: int,
    width: int,
    columns: tuple[int, int, int, int],
    padding_value: int,
) -> Tensor:
    """Return the positions (3, num_rows, n) of some columns of the input's rows.

    Args:
        tables: of a plan.
        num_rows: of the input.
        width: tokens of each.
        columns: n, the first of them, how many follow one another, and how much further on those
            behind lie.
        padding_value: of columns beyond the width.
    """
    num_columns, *where = columns
    rows, *_, dtype = tables
    out = rows.new_empty((3, num_rows, num_columns), dtype=dtype)
    num_places = num_rows * num_columns
    with device_of(out):
        if num_places:
            kernels.expand_columns[(-(-num_places // constants.BLOCK), 1, 1)](
                *_table(tables), out, *_search(tables), num_places, num_columns, width, *where,
                padding_value, constants.BLOCK,
            )  # fmt: skip
    return out


def select_entries(tables: Tables, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the rows, entries and time scale of some rows (n,) int64 of a plan, and their tokens.

    Reads how many tokens and entries there are, for which it waits.
    """
    rows, entries, time_scale, _ = tables
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


def _table(tables: Tables) -> tuple[Tensor, Tensor | None]:
    _, entries, time_scale, _ = tables
    return entries.contiguous(), time_scale if time_scale.shape[1] else None


def _search(tables: Tables) -> tuple[int, ...]:
    """Return the number of entries, the steps of a search among them, and the factors' strides."""
    _, entries, time_scale, _ = tables
    num_entries = entries.shape[0]
    return num_entries, num_entries.bit_length(), *time_scale.stride()
