"""The entries of a plan: they are counted in one pass and written in the next."""

import triton
import triton.language as tl

from vecrope.forms.triton.kernels.classify import larger
from vecrope.forms.triton.kernels.time import video_time_scale


@triton.jit
def entry_starts(mask, at, begin, inside, kept, found, begins, IGNORE_MASK: tl.constexpr):
    """Return which tokens start an entry: of a row, a group, a masked run, a group behind one."""
    starts = begins | (inside & (at == begin))
    if mask is not None and not IGNORE_MASK:
        previous = tl.load(mask + at - 1, mask=inside & (at > begin), other=1)
        starts |= found & (previous == 0)
        starts |= inside & (kept == 0) & (previous != 0)
    return starts


@triton.jit
def count_entries(
    outline, entries, time_scale, starts, at, num_tokens, capacity, BLOCK: tl.constexpr
):
    """Write the block's number of entries and the start of its last, and entries as not used."""
    block, num_blocks = tl.program_id(0), tl.num_programs(0)
    tl.store(outline + block, tl.sum(starts.to(tl.int32), 0))
    tl.store(outline + num_blocks + block, tl.max(tl.where(starts, at.to(tl.int32), -1), 0))
    for first in range(block * BLOCK, capacity, num_blocks * BLOCK):
        number = first + tl.arange(0, BLOCK)
        exists = number < capacity
        entry = entries + number.to(tl.int64) * 7
        for column in tl.static_range(7):
            value = tl.zeros_like(number)
            if column == 0:
                value += num_tokens
            if column == 4 or column == 5:
                value += 1
            tl.store(entry + column, value, mask=exists)
        if time_scale is not None:
            factors = time_scale + number.to(tl.int64) * 2
            tl.store(factors, tl.zeros_like(number), mask=exists)
            tl.store(factors + 1, tl.zeros_like(number), mask=exists)


@triton.jit
def entries_before(outline, CHUNK: tl.constexpr):
    """Return the entries of the blocks before, where the last of these starts, and all entries."""
    block, num_blocks = tl.program_id(0), tl.num_programs(0)
    before = tl.zeros((CHUNK,), tl.int32)
    total = tl.zeros((CHUNK,), tl.int32)
    last = tl.full((CHUNK,), -1, tl.int32)
    for first in range(0, num_blocks, CHUNK):
        other = first + tl.arange(0, CHUNK)
        earlier = other < block
        count = tl.load(outline + other, mask=other < num_blocks, other=0)
        total += count
        before += tl.where(earlier, count, 0)
        start = tl.load(outline + num_blocks + other, mask=earlier, other=-1)
        last = tl.maximum(last, start)
    return tl.sum(before, 0), tl.max(last, 0), tl.sum(total, 0)


@triton.jit
def write_entries(
    outline,
    entries,
    mask,
    starts,
    at,
    end,
    inside,
    kept,
    found,
    place,
    group,
    area,
    width,
    base,
    span,
    capacity,
    num_tokens,
    IGNORE_MASK: tl.constexpr,
    PADDING: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the columns of `GroupPlan.entries` for the entries that start or end in the block.

    Return the number of each token's entry, and for how many there is room: `capacity`, or 0 if
    that is too little, where one masked run covers the batch.
    """
    before, last, total = entries_before(outline, CHUNK)
    room = tl.where(total <= capacity, capacity, 0)
    number = before + tl.cumsum(starts.to(tl.int32), 0) - 1
    entry = entries + number.to(tl.int64) * 7
    new = starts & (number < room)
    tl.store(entry, at, mask=new)
    tl.store(entry + 2, tl.where(kept, base, PADDING), mask=new)
    tl.store(entry + 3, tl.where(kept & (found == 0), base, base + span), mask=new)
    tl.store(entry + 4, tl.where(found, area // width, 1), mask=new)
    tl.store(entry + 5, width, mask=new)
    tl.store(entry + 6, place, mask=new & kept)
    # What lasts to the end of a row, of a group or of a masked run, or up to a masked token.
    is_last = at + 1 >= end
    masked = inside & (kept == 0)
    masked_ends = masked & is_last
    ends = found & (is_last | (place == group - 1))
    if mask is not None and not IGNORE_MASK:
        following = tl.load(mask + at + 1, mask=inside & (at + 1 < end), other=1)
        masked_ends |= masked & (following != 0)
        ends |= found & (following == 0)
    start = tl.associative_scan(tl.where(starts, at.to(tl.int32), -1), 0, larger)
    tokens = at.to(tl.int32) + 1 - tl.where(start < 0, last, start)
    tl.store(entry + 1, tokens, mask=(ends | masked_ends) & (number < room))
    tl.store(entry + 6, -tokens, mask=masked_ends & (number < room))
    if (tl.program_id(0) == 0) & (room == 0):
        tl.store(entries, 0)
        tl.store(entries + 1, num_tokens)
        tl.store(entries + 2, -1)
        tl.store(entries + 3, -1)
        tl.store(entries + 6, -num_tokens)
    return number, room


@triton.jit
def write_time_scale(
    time_scale,
    number,
    new,
    found,
    item,
    num_images,
    seconds,
    STILL_IMAGES: tl.constexpr,
    RATE: tl.constexpr,
    RATE_FIRST: tl.constexpr,
    DEFAULT: tl.constexpr,
    READ_AS: tl.constexpr,
    COUNT_AS: tl.constexpr,
):
    """Write the factors of `GroupPlan.time_scale` for the new entries, 0 where there is no item."""
    is_video = found & (item >= num_images)
    scale = found.to(tl.int32)
    step = tl.where(is_video, 1, 0) if STILL_IMAGES else scale
    if time_scale.dtype.element_ty != tl.int32:
        factors = video_time_scale(
            seconds, item - num_images, is_video, RATE, RATE_FIRST, DEFAULT, READ_AS, COUNT_AS
        )
        step = tl.where(is_video, factors[0], step.to(tl.float32).to(COUNT_AS))
        scale = tl.where(is_video, factors[1], scale.to(tl.float32).to(COUNT_AS))
    tl.store(time_scale + number.to(tl.int64) * 2, step, mask=new)
    tl.store(time_scale + number.to(tl.int64) * 2 + 1, scale, mask=new)


@triton.jit
def write_row(rows, deltas, row, begin, end, measured, OPEN_MARKERS: tl.constexpr, room):
    """Write the columns of `PlanTable.rows` for a row, but for the markers behind its tokens."""
    at = rows + row * 5
    delta = tl.load(deltas + row)
    tl.store(at, begin)
    tl.store(at + 1, end - begin)
    tl.store(at + 2, tl.where(room > 0, delta + measured, -(2**31)))
    tl.store(at + 3, tl.where(room > 0, delta, -(2**63)))
    open_markers = 0 if OPEN_MARKERS is None else OPEN_MARKERS
    tl.store(at + 4, open_markers, mask=begin == end)
