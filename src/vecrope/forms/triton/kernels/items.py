"""The item table: what the grids say, and a search among the items' ends."""

import triton
import triton.language as tl

from vecrope.forms.triton.kernels.workspace import faults_of, item_rows


@triton.jit
def make_items(
    image_grids,
    video_grids,
    work,
    items,
    num_images,
    num_items,
    MERGE: tl.constexpr,
    THW: tl.constexpr,
    ONE_FRAME: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the item table, all images before all videos, and whether a grid is not sound."""
    ends, starts, widths, areas, groups, spans, moved = item_rows(items, num_items)
    tokens_before = tl.zeros((), tl.int64)
    moved_before = tl.zeros((), tl.int64)
    misshapen = tl.zeros((), tl.int32)
    for first in range(0, num_items, CHUNK):
        item = first + tl.arange(0, CHUNK)
        exists = item < num_items
        is_image = item < num_images
        is_video = exists & (item >= num_images)
        image = image_grids + item.to(tl.int64) * 3
        video = video_grids + (item - num_images).to(tl.int64) * 3
        t = tl.load(image, mask=is_image, other=0) + tl.load(video, mask=is_video, other=0)
        h = tl.load(image + 1, mask=is_image, other=0) + tl.load(video + 1, mask=is_video, other=0)
        w = tl.load(image + 2, mask=is_image, other=0) + tl.load(video + 2, mask=is_video, other=0)
        unsound = ((t <= 0) | (h <= 0) | (w <= 0)) & ((t != 0) | (h != 0) | (w != 0))
        unsound |= (h % MERGE != 0) | (w % MERGE != 0)
        # In floating point, where no product wraps. 2**30 is `MAX_TOKENS`.
        size = t.to(tl.float32) * (h // MERGE).to(tl.float32) * (w // MERGE).to(tl.float32)
        unsound |= size >= 2**30
        misshapen += tl.sum(unsound.to(tl.int32), 0)
        if ONE_FRAME:
            misshapen += tl.sum((is_image & (t > 1)).to(tl.int32), 0)
        t = tl.where(unsound, 0, t).to(tl.int64)
        height = tl.where(unsound, 0, h // MERGE).to(tl.int64)
        width = tl.where(unsound, 0, w // MERGE).to(tl.int64)

        area = height * width
        size = t * area
        deep = tl.where(is_image, t, 1)
        span = tl.maximum(height, width)
        if THW:
            span = tl.maximum(span, deep)
        moves = tl.where(is_image, (t > 0).to(tl.int64), t) * span
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
    faults = faults_of(work)
    tl.store(faults, tl.zeros((), tl.int64))
    tl.store(faults + 1, misshapen.to(tl.int64) + (tokens_before >= 2**30).to(tl.int64))
    tl.store(faults + 2, tl.zeros((), tl.int64))


@triton.jit
def items_at(ends, rank, searched, corner_rank, num_items, steps):
    """Return how many items end at each rank or before, 0 where nothing is `searched`.

    Both tensors of ranks are searched for at once: a step waits for the memory, not for the sums.
    """
    low, corner_low = tl.zeros_like(rank), tl.zeros_like(corner_rank)
    high, corner_high = tl.where(searched, num_items, 0), corner_low + num_items
    for _ in range(steps):
        middle, corner_middle = (low + high) // 2, (corner_low + corner_high) // 2
        narrowing, corner_narrowing = low < high, corner_low < corner_high
        end = tl.load(ends + middle, mask=narrowing, other=0)
        corner_end = tl.load(ends + corner_middle, mask=corner_narrowing, other=0)
        low = tl.where(narrowing & (end <= rank), middle + 1, low)
        high = tl.where(narrowing & (end > rank), middle, high)
        above = corner_narrowing & (corner_end <= corner_rank)
        corner_low = tl.where(above, corner_middle + 1, corner_low)
        corner_high = tl.where(corner_narrowing & ~above, corner_middle, corner_high)
    return low, corner_low
