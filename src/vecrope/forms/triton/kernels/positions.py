"""The passes behind the first: positions or the entries of a plan, deltas and faults."""

import triton
import triton.language as tl

from vecrope.forms.triton.constants import ARGUMENTS
from vecrope.forms.triton.kernels.blocks import block_of, load_block, load_tokens, places_of
from vecrope.forms.triton.kernels.classify import kinds_of, larger, open_markers_of
from vecrope.forms.triton.kernels.entries import (
    count_entries,
    entry_starts,
    write_entries,
    write_row,
    write_time_scale,
)
from vecrope.forms.triton.kernels.items import items_at, items_between
from vecrope.forms.triton.kernels.neighbours import lacks_marker, touches_frame
from vecrope.forms.triton.kernels.time import temporal_offset
from vecrope.forms.triton.kernels.workspace import block_rows, faults_of, item_rows, three_counts


@triton.jit
def _quotient(number, divisor):
    """Return a quotient of numbers that are not negative, which takes fewer instructions."""
    return (number.to(tl.uint32) // divisor.to(tl.uint32)).to(tl.int32)


@triton.jit
def _counts_of(work, start, stop, UNDECIDED: tl.constexpr, CHUNK: tl.constexpr):
    """Return what the blocks from one up to another hold, of which `start` begins a row.

    Returns:
        Image placeholders, video placeholders and unmasked tokens; and 1 if the last marker before
        `stop`, in its row, is a video start.
    """
    marked, undecided, counts, _, _ = block_rows(work, tl.num_programs(0))
    zero = tl.zeros((CHUNK,), tl.int32)
    images, videos, kept, opened = zero, zero, zero, zero
    last = -1
    for first in range(start, stop + 1 if UNDECIDED else stop, CHUNK):
        other = first + tl.arange(0, CHUNK)
        before = other < stop
        count = tl.load(counts + other, mask=before, other=0)
        images += count & 1023
        videos += (count >> 10) & 1023
        kept += count >> 20
        if UNDECIDED:
            # The last marker before each of the blocks; the first of a row has nothing undecided.
            has_forerunner = (other > start) & (other <= stop)
            marker = tl.load(marked + other - 1, mask=has_forerunner, other=-1)
            marker = tl.maximum(tl.associative_scan(marker, 0, larger), last)
            last = tl.max(marker, 0)
            in_video = (marker >= 0) & ((marker & 1) == 1)
            of_either = tl.load(undecided + other, mask=before, other=0)
            images += tl.where(in_video, 0, of_either)
            videos += tl.where(in_video, of_either, 0)
            opened += (in_video & (other == stop)).to(tl.int32)
    return tl.sum(images, 0), tl.sum(videos, 0), tl.sum(kept, 0), tl.sum(opened, 0)


@triton.jit
def _measured_length(
    work, mask, bounds, sizes, row_start, begin, end,
    PADDED: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Return the length that a row's delta is measured against."""
    length = end - begin
    if mask is not None and not PADDED:
        num_blocks = tl.maximum(tl.cdiv(length, BLOCK), 1)
        length = _counts_of(work, row_start, row_start + num_blocks, False, CHUNK)[2]
    elif sizes is not None and bounds is None:
        length = (tl.load(sizes) & 0x7FFFFFFF).to(tl.int32)
    return length


@triton.jit(
    do_not_specialize=[
        *("num_tokens", "seq_len", "num_rows", "num_images", "num_items", "capacity"),
    ],
    do_not_specialize_on_alignment=ARGUMENTS,
)
def write(
    ids,
    mask,
    types,
    bounds,
    seconds,
    sizes,
    positions,
    deltas,
    work,
    outline,
    entries,
    time_scale,
    rows,
    capacity,
    num_tokens,
    seq_len,
    num_rows,
    num_images,
    num_items,
    IMAGE: tl.constexpr,
    VIDEO: tl.constexpr,
    VIDEO_START: tl.constexpr,
    VIDEO_END: tl.constexpr,
    RULE: tl.constexpr,
    IGNORE_MASK: tl.constexpr,
    VISION_START: tl.constexpr,
    CHECK_MARKERS: tl.constexpr,
    APART: tl.constexpr,
    PADDING: tl.constexpr,
    PADDED: tl.constexpr,
    ALLOW_UNUSED_GRIDS: tl.constexpr,
    OPEN_MARKERS: tl.constexpr,
    STILL_IMAGES: tl.constexpr,
    RATE: tl.constexpr,
    RATE_FIRST: tl.constexpr,
    DEFAULT: tl.constexpr,
    READ_AS: tl.constexpr,
    COUNT_AS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the block's positions, and raise its row's delta and the faults by what it holds.

    Of a plan there are two such passes, and neither writes positions. The first, without `rows`,
    counts entries in its place; the second, which leaves deltas and faults as they are, writes the
    entries and the rows of the plan.

    The faults are: a group that other tokens interrupt, that touches the one before or lacks a
    marker where it must not, or a code of the mask or the types that is none; a grid, seconds or
    bounds that are not sound; and fewer or more placeholders than the grids describe.
    """
    block = tl.program_id(0)
    _, _, _, blocks, items = block_rows(work, tl.num_programs(0))
    if bounds is None:
        row, row_start, begin, end = block_of(
            block, bounds, sizes, num_tokens, seq_len, num_rows, BLOCK, CHUNK
        )
    else:
        row, row_start, begin, end = load_block(blocks, tl.num_programs(0), block)
    at = places_of(block, row_start, begin, BLOCK)
    token, inside, kept, wrong = load_tokens(
        ids, mask, bounds, sizes, row, begin, end, at, IGNORE_MASK
    )
    ends, starts, widths, areas, groups, spans, moved = item_rows(items, num_items)
    UNDECIDED: tl.constexpr = RULE == "last" and types is None
    images, videos, all_kept, _ = _counts_of(work, 0, row_start, UNDECIDED, CHUNK)
    row_images, row_videos, row_kept, opened = _counts_of(work, row_start, block, UNDECIDED, CHUNK)
    images, videos, all_kept = images + row_images, videos + row_videos, all_kept + row_kept
    image, video, codes = kinds_of(
        types, work, block, row_start, at, token, inside, kept, opened,
        IMAGE, VIDEO, VIDEO_START, VIDEO_END, RULE, CHUNK,
    )  # fmt: skip
    if types is not None:
        wrong |= kept & ((codes < 0) | (codes > 2))
    visual = image | video

    # Three counts in one scan: images, videos, text.
    counts = tl.cumsum(three_counts(image, video, kept & ~visual), 0)
    image_tokens = tl.load(ends + num_images - 1, mask=num_images > 0, other=0)
    image_rank = images + (counts & 1023) - 1
    video_rank = image_tokens + videos + ((counts >> 10) & 1023) - 1
    rank = tl.where(video, video_rank, image_rank)
    # The ranks that come next, of either kind: at the start of the row, at that of the block and
    # behind the block.
    images_after = images + tl.sum(image.to(tl.int32), 0)
    videos_after = videos + tl.sum(video.to(tl.int32), 0)
    corner = tl.arange(0, 8)
    of_video, where = corner // 4, corner % 4
    corner_rank = tl.where(of_video == 0, images, videos)
    row_rank = tl.where(of_video == 0, images - row_images, videos - row_videos)
    rank_after = tl.where(of_video == 0, images_after, videos_after)
    corner_rank = tl.where(where == 0, row_rank, tl.where(where == 1, corner_rank, rank_after))
    corner_rank += of_video * image_tokens
    corner_item = items_at(ends, corner_rank, num_items, CHUNK // 4)
    # Those of the block's tokens lie between those of its corners.
    first_image = tl.sum(tl.where((of_video == 0) & (where == 1), corner_item, 0), 0)
    first_video = tl.sum(tl.where((of_video == 1) & (where == 1), corner_item, 0), 0)
    last_image = tl.sum(tl.where((of_video == 0) & (where == 2), corner_item, 0), 0)
    last_video = tl.sum(tl.where((of_video == 1) & (where == 2), corner_item, 0), 0)
    item = items_between(
        ends,
        rank,
        tl.where(video, first_video, tl.where(image, first_image, 0)),
        tl.where(video, last_video, tl.where(image, last_image, 0)),
        tl.maximum(last_image - first_image, last_video - first_video),
    )
    found = visual & (item < num_items)
    # Behind the last item its own groups count.
    corner_item = tl.minimum(corner_item, tl.maximum(num_items - 1, 0))
    exists = corner_item < num_items
    start = tl.load(starts + item, mask=found, other=0)
    group = tl.load(groups + item, mask=found, other=1)
    span = tl.load(spans + item, mask=found, other=1)
    area = tl.load(areas + item, mask=found, other=1)
    width = tl.load(widths + item, mask=found, other=1)
    corner_start = tl.load(starts + corner_item, mask=exists, other=0)
    corner_group = tl.load(groups + corner_item, mask=exists, other=1)
    corner_span = tl.load(spans + corner_item, mask=exists, other=0)
    corner_moved = tl.load(moved + corner_item, mask=exists, other=0)
    corner_group = tl.maximum(corner_group, 1)

    # By how much the groups that begin before the block, but not before its row, move the position.
    moves = tl.cdiv(corner_rank - corner_start, corner_group) * corner_span + corner_moved
    moves = tl.where(where == 1, moves, tl.where(where == 0, -moves, 0))
    before = row_kept - row_images - row_videos + tl.sum(moves, 0)
    # A group is a frame or all frames of an item.
    place = tl.where(found, rank - start, 0)
    frame = _quotient(place, area)
    in_frame = place - frame * area
    place = tl.where(group > area, place, in_frame)
    frame = tl.where(group > area, frame, 0)
    begins = found & (place == 0)
    moves = tl.where(begins, span, (kept & ~found).to(tl.int32))
    base = before + tl.cumsum(moves, 0) - span
    line = _quotient(in_frame, width)
    offset = temporal_offset(
        frame, item, found & (item >= num_images), num_images, seconds,
        STILL_IMAGES, RATE, RATE_FIRST, DEFAULT, READ_AS, COUNT_AS,
    )  # fmt: skip
    time, height, across = base + offset, base + line, base + in_frame - line * width
    if positions is not None:
        plane = tl.cast(num_tokens, tl.int64)  # for a compiler it can be a constant
        tl.store(positions + at, tl.where(kept, time, PADDING), mask=inside)
        tl.store(positions + plane + at, tl.where(kept, height, PADDING), mask=inside)
        tl.store(positions + 2 * plane + at, tl.where(kept, across, PADDING), mask=inside)
    else:
        opens = entry_starts(mask, at, begin, inside, kept, found, begins, IGNORE_MASK)
        if rows is None:
            count_entries(outline, entries, time_scale, opens, at, num_tokens, capacity, BLOCK)

    if rows is not None:
        number, room = write_entries(
            outline, entries, mask, opens, at, end, inside, kept, found, place, group, area, width,
            base, span, capacity, num_tokens, IGNORE_MASK, PADDING, CHUNK,
        )  # fmt: skip
        if time_scale is not None:
            write_time_scale(
                time_scale, number, opens & (number < room), found, item, num_images, seconds,
                STILL_IMAGES, RATE, RATE_FIRST, DEFAULT, READ_AS, COUNT_AS,
            )  # fmt: skip
        if (block == row_start) & (row < num_rows):
            length = _measured_length(
                work, mask, bounds, sizes, row_start, begin, end, PADDED, BLOCK, CHUNK
            )
            write_row(rows, deltas, row, begin, end, length, OPEN_MARKERS, room)
        open_markers = open_markers_of(token, kept, codes, opened, RULE, VISION_START, OPEN_MARKERS)
        tl.store(rows + row * 5 + 4 + at * 0, open_markers, mask=inside & (at + 1 == end))
        if (block == 0) & (room == 0):
            tl.atomic_add(faults_of(work) + 1, 1, sem="relaxed")
    else:
        length = _measured_length(
            work, mask, bounds, sizes, row_start, begin, end, PADDED, BLOCK, CHUNK
        )
        largest = tl.maximum(time, tl.maximum(height, across))
        next_position = tl.max(tl.where(kept, largest + 1, 0), 0)
        tl.atomic_max(
            deltas + row, (next_position - length).to(tl.int64), mask=row < num_rows, sem="relaxed"
        )

        # A group is whole if no text and no start of a row comes between its first and last token.
        # Both are counted up to every token; the difference is never negative, nor then is any
        # group's.
        faults = faults_of(work)
        passed = ((counts >> 20) + (all_kept - images - videos + row)).to(tl.int64)
        is_last = found & (place == group - 1)
        if CHECK_MARKERS and VISION_START is not None:
            wrong |= lacks_marker(ids, at, begin, visual & (place == 0), VISION_START)
        if APART:
            later = begins & video & (rank > start)
            wrong |= touches_frame(
                ids, mask, types, at, begin, later, IMAGE if VIDEO is None else VIDEO, IGNORE_MASK
            )
        between = tl.where(is_last, passed, 0) - tl.where(begins, passed, 0) + wrong.to(tl.int64)
        tl.atomic_add(faults, tl.sum(between, 0), sem="relaxed")
        if block == tl.num_programs(0) - 1:
            tokens = tl.load(ends + num_items - 1, mask=num_items > 0, other=0)
            expected = tl.where(of_video == 0, image_tokens, tokens)
            if ALLOW_UNUSED_GRIDS:
                misfit = corner_rank > expected
                misfit |= exists & ((corner_rank - corner_start) % corner_group != 0)
            else:
                misfit = corner_rank != expected
            misfit = tl.sum((misfit & (where == 2)).to(tl.int32), 0)
            tl.store(faults + 2, misfit.to(tl.int64))
