"""The tables of some rows of a plan, and of several plans one after the other."""

import triton
import triton.language as tl

_TABLES = ["entries", "time_scale", "rows", "chosen", "out_entries", "out_scale", "out", "column"]


@triton.jit
def _entries_before(entries, index, wanted, num_entries, steps):
    """Return how many entries start before an index of the batch."""
    low = tl.zeros(index.shape, tl.int32)
    high = tl.where(wanted, num_entries, 0)
    for _ in range(steps):
        middle = (low + high) // 2
        narrowing = low < high
        start = tl.load(entries + middle.to(tl.int64) * 7, mask=narrowing, other=0)
        before = narrowing & (start < index)
        low = tl.where(before, middle + 1, low)
        high = tl.where(narrowing & (start >= index), middle, high)
    return low


@triton.jit(
    do_not_specialize=["num_entries", "steps", "number"], do_not_specialize_on_alignment=_TABLES
)
def choose_rows(
    entries, rows, chosen, out, spans, totals, num_entries, steps, number, CHUNK: tl.constexpr
):
    """Write the rows that are chosen, in one program, and for each the entries to be copied.

    `spans` takes for each row the first of its entries, their number and where they go; `totals`
    the tokens and the entries of all.
    """
    num_tokens = tl.zeros((), tl.int64)
    copied = tl.zeros((), tl.int32)
    for first in range(0, number, CHUNK):
        at = first + tl.arange(0, CHUNK)
        exists = at < number
        row = rows + tl.load(chosen + at, mask=exists, other=0) * 5
        begin = tl.load(row, mask=exists, other=0)
        tokens = tl.load(row + 1, mask=exists, other=0)
        low = _entries_before(entries, begin, exists, num_entries, steps)
        high = _entries_before(entries, begin + tokens, exists, num_entries, steps)
        count = tl.where(exists & (tokens > 0), high - low, 0)
        tl.store(out + at * 5, num_tokens + tl.cumsum(tokens, 0) - tokens, mask=exists)
        tl.store(out + at * 5 + 1, tokens, mask=exists)
        for column in tl.static_range(2, 5):
            value = tl.load(row + column, mask=exists, other=0)
            tl.store(out + at * 5 + column, value, mask=exists)
        tl.store(spans + at * 3, low, mask=exists)
        tl.store(spans + at * 3 + 1, count, mask=exists)
        tl.store(spans + at * 3 + 2, copied + tl.cumsum(count, 0) - count, mask=exists)
        num_tokens += tl.sum(tokens, 0)
        copied += tl.sum(count, 0)
    tl.store(totals, num_tokens)
    tl.store(totals + 1, copied.to(tl.int64))


@triton.jit(do_not_specialize=["stride", "factor"], do_not_specialize_on_alignment=_TABLES)
def copy_entries(
    entries,
    time_scale,
    rows,
    chosen,
    out,
    spans,
    out_entries,
    out_scale,
    stride,
    factor,
    BLOCK: tl.constexpr,
):
    """Copy the entries of one chosen row to where its tokens begin now."""
    at = tl.program_id(0)
    low = tl.load(spans + at * 3)
    count = tl.load(spans + at * 3 + 1)
    target = tl.load(spans + at * 3 + 2)
    shift = tl.load(out + at * 5) - tl.load(rows + tl.load(chosen + at) * 5)
    for first in range(0, count, BLOCK):
        number = (first + tl.arange(0, BLOCK)).to(tl.int64)
        exists = number < count
        source = entries + (low + number) * 7
        goal = out_entries + (target + number) * 7
        tl.store(goal, tl.load(source, mask=exists, other=0) + shift, mask=exists)
        for column in tl.static_range(1, 7):
            tl.store(goal + column, tl.load(source + column, mask=exists, other=0), mask=exists)
        if time_scale is not None:
            source = time_scale + (low + number) * stride
            goal = out_scale + (target + number) * 2
            tl.store(goal, tl.load(source, mask=exists, other=0), mask=exists)
            tl.store(goal + 1, tl.load(source + factor, mask=exists, other=0), mask=exists)


@triton.jit(do_not_specialize=["stride", "number"], do_not_specialize_on_alignment=_TABLES)
def add_begins(column, parts, stride, number, BLOCK: tl.constexpr):
    """Add a number to each part of a column; `parts` are the parts' first rows, ends and numbers.

    The second axis of the grid shares a part.
    """
    part = parts + tl.program_id(0)
    start, stop = tl.load(part), tl.load(part + number)
    begin = tl.load(part + 2 * number)
    first = start + tl.program_id(1) * BLOCK
    for first_row in range(first, stop, tl.num_programs(1) * BLOCK):
        row = first_row + tl.arange(0, BLOCK)
        value = column + row * stride
        exists = row < stop
        tl.store(value, tl.load(value, mask=exists, other=0) + begin, mask=exists)
