"""Positions that are read off the tables of a plan."""

import triton
import triton.language as tl

from vecrope.forms.triton.kernels.time import scaled

_SIZES = [
    *("num_entries", "steps", "stride", "factor", "num_rows", "num_places", "num_columns", "first"),
]
_TABLES = [
    *("entries", "time_scale", "rows", "out", "token_index", "row_index", "computed", "scheduled"),
]


@triton.jit
def _positions_of(entries, time_scale, index, wanted, num_entries, steps, stride, factor):
    """Return the time, height and width of the tokens at an index of the batch that are wanted.

    `stride` and `factor` are the strides of `time_scale`.
    """
    index = index.to(entries.dtype.element_ty)
    low = tl.zeros(index.shape, tl.int32)
    high = tl.where(wanted, num_entries, 0)
    # Most steps of an engine decode, for which nothing is looked up.
    for _ in range(tl.where(tl.max(wanted.to(tl.int32), 0) > 0, steps, 0)):
        middle = (low + high) // 2
        narrowing = low < high
        start = tl.load(entries + middle.to(tl.int64) * 7, mask=narrowing, other=0)
        above = narrowing & (start <= index)
        low = tl.where(above, middle + 1, low)
        high = tl.where(narrowing & ~above, middle, high)
    number = tl.maximum(low - 1, 0).to(tl.int64)
    entry = entries + number * 7
    start = tl.load(entry, mask=wanted, other=0)
    tokens = tl.load(entry + 1, mask=wanted, other=0)
    base = tl.load(entry + 2, mask=wanted, other=0)
    behind = tl.load(entry + 3, mask=wanted, other=0)
    height = tl.load(entry + 4, mask=wanted, other=1)
    width = tl.load(entry + 5, mask=wanted, other=1)
    before = tl.load(entry + 6, mask=wanted, other=0)
    along = index - start
    inside = along < tokens
    anchor = tl.where(inside, base, behind + along - tokens)
    place = tl.maximum(tl.where(inside, along + before, 0), 0)
    row = place // width
    frame = row // height
    time = frame
    if time_scale is not None:
        factors = time_scale + number * stride
        step = tl.load(factors, mask=wanted, other=0)
        scale = tl.load(factors + factor, mask=wanted, other=0)
        if time_scale.dtype.element_ty == tl.int32:
            time = frame * step * scale
        else:
            time = scaled(frame, step, scale, time_scale.dtype.element_ty)
    return anchor + time, anchor + row - frame * height, anchor + place - row * width


@triton.jit
def _write_in_rows(
    entries, time_scale, rows, out, plane, place, row, index, exists, num_entries, steps, stride,
    factor,
):  # fmt: skip
    """Write the positions of tokens by their row and index in it; behind its end are decoded ones.

    `place` is where in each plane of the output.
    """
    begin = tl.load(rows + row * 5, mask=exists, other=0)
    length = tl.load(rows + row * 5 + 1, mask=exists, other=0)
    following = tl.load(rows + row * 5 + 2, mask=exists, other=0)
    beyond = index - length
    planned = exists & (beyond < 0)
    time, height, width = _positions_of(
        entries, time_scale, begin + index, planned, num_entries, steps, stride, factor
    )
    decoded = following + beyond
    tl.store(out + place, tl.where(planned, time, decoded), mask=exists)
    tl.store(out + plane + place, tl.where(planned, height, decoded), mask=exists)
    tl.store(out + 2 * plane + place, tl.where(planned, width, decoded), mask=exists)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_TABLES)
def expand_rows(
    entries,
    time_scale,
    rows,
    token_index,
    row_index,
    out,
    num_entries,
    steps,
    stride,
    factor,
    num_rows,
    num_places,
    num_columns,
    first,
    BLOCK: tl.constexpr,
):
    """Write the positions of any tokens of rows.

    Without `row_index` each row has `num_columns` of them, without `token_index` those from `first`
    on.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = place < num_places
    if row_index is None:
        row = place // num_columns
    else:
        row = tl.load(row_index + place, mask=exists, other=0).to(tl.int64)
        row = tl.minimum(tl.maximum(row, 0), num_rows - 1)
    if token_index is None:
        index = first + place - row * num_columns
    else:
        index = tl.load(token_index + place, mask=exists, other=0).to(tl.int64)
    _write_in_rows(
        entries, time_scale, rows, out, num_places, place, row, index, exists, num_entries, steps,
        stride, factor,
    )  # fmt: skip


@triton.jit(do_not_specialize=[*_SIZES, "plane"], do_not_specialize_on_alignment=_TABLES)
def expand_step(
    entries,
    time_scale,
    rows,
    computed,
    scheduled,
    out,
    num_entries,
    steps,
    stride,
    factor,
    num_rows,
    num_places,
    plane,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the positions of the tokens scheduled in each row, behind those that are computed.

    The last row goes on up to `num_places`. The second axis of the grid shares the blocks of a row.
    """
    row = tl.program_id(0)
    begin = tl.zeros((CHUNK,), tl.int64)
    for first in range(0, row, CHUNK):
        other = first + tl.arange(0, CHUNK)
        begin += tl.load(scheduled + other, mask=other < row, other=0).to(tl.int64)
    start = tl.sum(begin, 0)
    count = tl.load(scheduled + row).to(tl.int64)
    count = tl.where(row == num_rows - 1, num_places - start, count)
    done = tl.load(computed + row).to(tl.int64)
    for first in range(tl.program_id(1) * BLOCK, count, tl.num_programs(1) * BLOCK):
        offset = first + tl.arange(0, BLOCK)
        exists = (offset < count) & (start + offset < num_places)
        _write_in_rows(
            entries, time_scale, rows, out, plane, start + offset, tl.zeros_like(offset) + row,
            done + offset, exists, num_entries, steps, stride, factor,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[*_SIZES, "width", "length", "jump", "padding"],
    do_not_specialize_on_alignment=_TABLES,
)
def expand_columns(
    entries,
    time_scale,
    out,
    num_entries,
    steps,
    stride,
    factor,
    num_places,
    num_columns,
    width,
    first,
    length,
    jump,
    padding,
    BLOCK: tl.constexpr,
):
    """Write the positions of some columns of the input's rows, which have `width` of them.

    They are those from `first` on, of which those after `length` lie `jump` further on. What is
    beyond the input is padding.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = place < num_places
    row = place // num_columns
    column = place - row * num_columns
    column += tl.where(column < length, first, first + jump)
    planned = exists & (column < width)
    time, height, across = _positions_of(
        entries, time_scale, row * width + column, planned, num_entries, steps, stride, factor
    )
    tl.store(out + place, tl.where(planned, time, padding), mask=exists)
    tl.store(out + num_places + place, tl.where(planned, height, padding), mask=exists)
    tl.store(out + 2 * num_places + place, tl.where(planned, across, padding), mask=exists)
