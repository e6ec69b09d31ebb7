"""The item table: what the grids say, and searches among the items' ends."""

import triton
import triton.language as tl

from vecrope.forms.triton.kernels.blocks import check_bounds
from vecrope.forms.triton.kernels.time import load_seconds, temporal_offset
from vecrope.forms.triton.kernels.workspace import faults_of, item_rows


@triton.jit
def _sides(grids, row, exists):
    """Return the three numbers of grid rows, 0 where there is none."""
    at = grids + row.to(tl.int64) * 3
    t = tl.load(at, mask=exists, other=0).to(tl.int64)
    h = tl.load(at + 1, mask=exists, other=0).to(tl.int64)
    w = tl.load(at + 2, mask=exists, other=0).to(tl.int64)
    return t, h, w


@triton.jit
def make_items(
    image_grids,
    video_grids,
    seconds,
    bounds,
    sizes,
    work,
    items,
    num_tokens,
    num_rows,
    num_images,
    num_items,
    MERGE: tl.constexpr,
    MERGED_FRAMES: tl.constexpr,
    SEPARATE: tl.constexpr,
    THW: tl.constexpr,
    ONE_FRAME: tl.constexpr,
    ROUND_GRID_SIDES: tl.constexpr,
    STILL_IMAGES: tl.constexpr,
    RATE: tl.constexpr,
    RATE_FIRST: tl.constexpr,
    DEFAULT: tl.constexpr,
    READ_AS: tl.constexpr,
    COUNT_AS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the item table, all images before all videos, and what is not sound by itself.

    That are grids, seconds and the bounds of sequences.
    """
    ends, starts, widths, areas, groups, spans, moved = item_rows(items, num_items)
    tokens_before = tl.zeros((), tl.int64)
    moved_before = tl.zeros((), tl.int64)
    unsound = tl.zeros((), tl.int32)
    time_passed = tl.zeros((), tl.float64)
    for first in range(0, num_items, CHUNK):
        item = first + tl.arange(0, CHUNK)
        exists = item < num_items
        is_image = item < num_images
        is_video = exists & (item >= num_images)
        t, h, w = _sides(image_grids, item, is_image)
        video_t, video_h, video_w = _sides(video_grids, item - num_images, is_video)
        t, h, w = t + video_t, h + video_h, w + video_w
        wrong = ((t <= 0) | (h <= 0) | (w <= 0)) & ((t != 0) | (h != 0) | (w != 0))
        if ROUND_GRID_SIDES:
            indivisible = ((h < MERGE) & (h != 0)) | ((w < MERGE) & (w != 0))
        else:
            indivisible = (h % MERGE != 0) | (w % MERGE != 0)
        # In floating point, where no product wraps. 2**30 is `MAX_TOKENS`.
        size = t.to(tl.float32) * (h // MERGE).to(tl.float32) * (w // MERGE).to(tl.float32)
        wrong |= size >= 2**30
        no_frame = is_video & (t > 0) & (t < MERGED_FRAMES)
        unsound += tl.sum((wrong | indivisible | no_frame).to(tl.int32), 0)
        if ONE_FRAME:
            unsound += tl.sum((is_image & (t > 1)).to(tl.int32), 0)
        if RATE is not None:
            step = load_seconds(seconds, item - num_images, is_video, DEFAULT).to(tl.float64)
            rate = tl.full(t.shape, RATE, tl.float64)
            offset = tl.where(is_video, step * rate * t.to(tl.float64), 0.0)
            unsound += tl.sum((is_video & ~(step >= 0.0)).to(tl.int32), 0)
            if COUNT_AS == tl.float16:  # whose largest number is 65504
                unsound += tl.sum((is_video & ~(offset < 65504)).to(tl.int32), 0)
            time_passed += tl.sum(offset, 0)
        t = tl.where(wrong, 0, t)
        t = tl.where(is_video, t // MERGED_FRAMES, t)
        height = tl.where(wrong, 0, h // MERGE)
        width = tl.where(wrong, 0, w // MERGE)

        area = height * width
        size = t * area
        deep = tl.where(is_video, 1, t) if SEPARATE else t
        span = tl.maximum(height, width)
        if THW:
            last = tl.maximum(deep - 1, 0).to(tl.int32)
            last = temporal_offset(
                last, item, is_video, num_images, seconds,
                STILL_IMAGES, RATE, RATE_FIRST, DEFAULT, READ_AS, COUNT_AS,
            )  # fmt: skip
            span = tl.maximum(span, tl.maximum(last, 0) + 1)
        num_groups = tl.where(is_video, t, (t > 0).to(tl.int64)) if SEPARATE else (t > 0)
        moves = tl.where(size > 0, num_groups.to(tl.int64) * span, 0)
        end = tokens_before + tl.cumsum(size, 0)
        tl.store(ends + item, end.to(tl.int32), mask=exists)
        tl.store(starts + item, (end - size).to(tl.int32), mask=exists)
        tl.store(widths + item, width.to(tl.int32), mask=exists)
        tl.store(areas + item, area.to(tl.int32), mask=exists)
        tl.store(groups + item, (deep * area).to(tl.int32), mask=exists)
        tl.store(spans + item, span.to(tl.int32), mask=exists)
        moves_before = moved_before + tl.cumsum(moves, 0) - moves
        tl.store(moved + item, moves_before.to(tl.int32), mask=exists)
        tokens_before += tl.sum(size, 0)
        moved_before += tl.sum(moves, 0)
    if bounds is not None:
        unsound += check_bounds(bounds, sizes, num_tokens, num_rows, CHUNK)
    too_much = (tokens_before >= 2**30) | ~(time_passed < 2**30)
    faults = faults_of(work)
    tl.store(faults, tl.zeros((), tl.int64))
    tl.store(faults + 1, unsound.to(tl.int64) + too_much.to(tl.int64))
    tl.store(faults + 2, tl.zeros((), tl.int64))


@triton.jit
def items_at(ends, rank, num_items, SPREAD: tl.constexpr):
    """Return how many items end at each of a few ranks or before.

    A step reads `SPREAD` ends at equal distances, since it waits for the memory, not for the sums.
    """
    low = tl.zeros_like(rank)
    left = num_items
    while left > 0:
        stride = tl.cdiv(left, SPREAD)
        pivot = low[:, None] + (tl.arange(0, SPREAD)[None, :] + 1) * stride - 1
        end = tl.load(ends + pivot, mask=pivot < num_items, other=2**31 - 1)
        low += tl.sum((end <= rank[:, None]).to(tl.int32), 1) * stride
        left = stride - 1
    return low


@triton.jit
def items_between(ends, rank, low, high, most):
    """Return how many items end at each rank or before, which are `low` to `high`.

    They differ by `most` at the most.
    """
    while most > 0:
        middle = (low + high) // 2
        narrowing = low < high
        end = tl.load(ends + middle, mask=narrowing, other=0)
        low = tl.where(narrowing & (end <= rank), middle + 1, low)
        high = tl.where(narrowing & (end > rank), middle, high)
        most = most // 2
    return low
