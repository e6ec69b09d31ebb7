"""The pipeline as Triton kernels; `vecrope.forms.triton.launch` launches them.

Each program takes a block of one row, twice: to sum it up in a few numbers, and to write its
positions, for which it sums up those of all blocks before it. A placeholder's rank, counted so,
gives its item, and the spans of all groups of a lower rank and the text before it in the row give
the position at which its group starts: there is no table of segments, and nothing of the prompt's
length is written but the positions. A group is what shares one running position: an image, or a
frame of a video.

Named constants are functions here: Triton compares every global with its value at compile time, at
every launch.
"""

import triton
import triton.language as tl

# Tokens in a block, and blocks that are summed up at a time.
BLOCK = 512
CHUNK = 256
# Numbers of the workspace: of 64 bits, what is wrong; of 32, those of each block and each item.
NUM_FAULTS = 3
NUM_BLOCK_ROWS = 5
NUM_ITEM_ROWS = 7
# Ranks and positions have 32 bits, and a marker's index takes one more.
MAX_TOKENS = 2**30
# What is compiled is launched with constants and all from Triton 3.3 on.
COMPILED_TAKE_CONSTANTS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)
# The caller's tensors, which may be views that start anywhere.
_ARGUMENTS = ["ids", "mask", "types", "image_grids", "video_grids"]


@triton.jit
def _block_rows(work, num_blocks):
    """Return the rows of the workspace of a number a block, and the item table that follows them.

    They are: the index of the last marker times two, plus one for a video start, or without that
    rule video starts less video ends; placeholders before the first marker, whose kind the blocks
    before decide; image placeholders; video placeholders; unmasked tokens. `NUM_FAULTS` numbers of
    64 bits stand before them.
    """
    rows = work + 6
    return (
        rows,
        rows + num_blocks,
        rows + 2 * num_blocks,
        rows + 3 * num_blocks,
        rows + 4 * num_blocks,
        rows + 5 * num_blocks,
    )


@triton.jit
def _faults(work):
    return work.to(tl.pointer_type(tl.int64))


@triton.jit
def _item_rows(items, num_items):
    """Return the rows of the item table, each of a number an item.

    They are: the rank behind its last placeholder and that of its first; the columns of a frame;
    the tokens of a frame and of a group; by how much a group moves the running position, and all
    groups of all items before have.
    """
    return (
        items,
        items + num_items,
        items + 2 * num_items,
        items + 3 * num_items,
        items + 4 * num_items,
        items + 5 * num_items,
        items + 6 * num_items,
    )


@triton.jit
def _larger(left, right):
    return tl.maximum(left, right)


@triton.jit
def _add(a, b, c, d, e, f, g, a2, b2, c2, d2, e2, f2, g2):
    return a + a2, b + b2, c + c2, d + d2, e + e2, f + f2, g + g2


@triton.jit
def _load(ids, mask, sizes, seq_len, BLOCK: tl.constexpr):
    """Return the row, the tokens' places in the batch, the tokens, and which exist and are kept.

    Also return which have a mask that is neither 0 nor 1.
    """
    blocks_in_row = tl.cdiv(seq_len, BLOCK)
    row = tl.program_id(0) // blocks_in_row
    column = (tl.program_id(0) - row * blocks_in_row) * BLOCK + tl.arange(0, BLOCK)
    inside = column < seq_len
    at = row.to(tl.int64) * seq_len + column
    token = tl.load(ids + at, mask=inside, other=-1)
    kept = inside
    if sizes is not None:
        # The rows in use in the upper half, the tokens of each in the lower.
        size = tl.load(sizes)
        kept = column < tl.where(row < size >> 32, tl.minimum(size & 0x7FFFFFFF, seq_len), 0)
    wrong = inside & (column < 0)
    if mask is not None:
        code = tl.load(mask + at, mask=inside, other=0)
        kept &= code != 0
        wrong = (code != 0) & (code != 1)
    return row, at, token, inside, kept, wrong


@triton.jit
def _markers(
    at, token, kept, VIDEO_START: tl.constexpr, VIDEO_END: tl.constexpr, LAST: tl.constexpr
):
    """Return numbers whose running maximum, or sum, says at each token whether a video is open."""
    opens = kept & (token == VIDEO_START)
    closes = kept & (token == VIDEO_END)
    if LAST:
        return tl.where(opens | closes, at.to(tl.int32) * 2 + opens.to(tl.int32), -1)
    return opens.to(tl.int32) - closes.to(tl.int32)


@triton.jit
def _kinds(
    types,
    work,
    at,
    token,
    inside,
    kept,
    opened,
    row_start,
    IMAGE: tl.constexpr,
    VIDEO_START: tl.constexpr,
    VIDEO_END: tl.constexpr,
    LAST: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Return which tokens are an image's and which a video's, and what says so.

    `opened` is 1 if the last marker before the block is a video start, 0 if it is none, and -1 if
    that is not known: then a placeholder before the first marker is neither.

    The third is the types, or else what `_markers` returns, as a running maximum or sum.
    """
    if types is not None:
        codes = tl.load(types + at, mask=inside, other=0)
        image, video = kept & (codes == 1), kept & (codes == 2)
    else:
        codes = _markers(at, token, kept, VIDEO_START, VIDEO_END, LAST)
        if LAST:
            codes = tl.associative_scan(codes, 0, _larger)
            in_video = tl.where(codes < 0, opened, codes & 1)
        else:
            marked = _block_rows(work, 0)[0]
            codes = tl.cumsum(codes, 0) + _sum(marked, row_start, tl.program_id(0), CHUNK)
            in_video = (codes > 0).to(tl.int32)
        placeholder = kept & (token == IMAGE)
        image, video = placeholder & (in_video == 0), placeholder & (in_video == 1)
    return image, video, codes


@triton.jit
def _sum(column, start, stop, CHUNK: tl.constexpr):
    total = tl.zeros((CHUNK,), tl.int32)
    for first in range(start, stop, CHUNK):
        at = first + tl.arange(0, CHUNK)
        total += tl.load(column + at, mask=at < stop, other=0)
    return tl.sum(total, 0)


@triton.jit
def _make_items(
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
    ends, starts, widths, areas, groups, spans, moved = _item_rows(items, num_items)
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
    faults = _faults(work)
    tl.store(faults, tl.zeros((), tl.int64))
    tl.store(faults + 1, misshapen.to(tl.int64) + (tokens_before >= 2**30).to(tl.int64))
    tl.store(faults + 2, tl.zeros((), tl.int64))


@triton.jit
def _items_of(ends, rank, searched, corner_rank, num_items, steps):
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


@triton.jit(do_not_specialize=["seq_len"], do_not_specialize_on_alignment=_ARGUMENTS)
def mark(
    ids,
    mask,
    sizes,
    work,
    seq_len,
    VIDEO_START: tl.constexpr,
    VIDEO_END: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write each block's video starts less its video ends."""
    _, at, token, _, kept, _ = _load(ids, mask, sizes, seq_len, BLOCK)
    markers = _markers(at, token, kept, VIDEO_START, VIDEO_END, False)
    tl.store(_block_rows(work, 0)[0] + tl.program_id(0), tl.sum(markers, 0))


@triton.jit(
    do_not_specialize=["seq_len", "num_images", "num_items"],
    do_not_specialize_on_alignment=_ARGUMENTS,
)
def summarise(
    ids,
    mask,
    types,
    sizes,
    image_grids,
    video_grids,
    deltas,
    work,
    seq_len,
    num_images,
    num_items,
    IMAGE: tl.constexpr,
    VIDEO_START: tl.constexpr,
    VIDEO_END: tl.constexpr,
    LAST: tl.constexpr,
    MERGE: tl.constexpr,
    THW: tl.constexpr,
    ONE_FRAME: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write each block's numbers and, in one more program, the item table."""
    block = tl.program_id(0)
    num_blocks = tl.num_programs(0) - 1
    marked, undecided, images, videos, kept_tokens, items = _block_rows(work, num_blocks)
    if block == num_blocks:
        _make_items(
            image_grids,
            video_grids,
            work,
            items,
            num_images,
            num_items,
            MERGE,
            THW,
            ONE_FRAME,
            CHUNK,
        )
    else:
        row, at, token, inside, kept, _ = _load(ids, mask, sizes, seq_len, BLOCK)
        row_start = row * tl.cdiv(seq_len, BLOCK)
        image, video, markers = _kinds(
            types, work, at, token, inside, kept, -1, row_start,
            IMAGE, VIDEO_START, VIDEO_END, LAST, CHUNK,
        )  # fmt: skip
        if LAST and types is None:
            rest = kept & (token == IMAGE) & ~image & ~video
            tl.store(marked + block, tl.max(markers, 0))
            tl.store(undecided + block, tl.sum(rest.to(tl.int32), 0))
        tl.store(images + block, tl.sum(image.to(tl.int32), 0))
        tl.store(videos + block, tl.sum(video.to(tl.int32), 0))
        tl.store(kept_tokens + block, tl.sum(kept.to(tl.int32), 0))
        if block == row_start:
            tl.store(deltas + row, -(2**63))


@triton.jit
def _counts_before(
    work, row, seq_len, UNDECIDED: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr
):
    """Return what the blocks before this one hold, in all and in its row.

    Returns:
        Image placeholders, video placeholders and unmasked tokens in all; the same in the row; and
        1 if the last marker in the row is a video start.
    """
    block = tl.program_id(0)
    blocks_in_row = tl.cdiv(seq_len, BLOCK)
    marked, undecided, images, videos, kept_tokens, _ = _block_rows(work, tl.num_programs(0))
    zero = tl.zeros((CHUNK,), tl.int32)
    image, video, kept = zero, zero, zero
    row_image, row_video, row_kept, opened = zero, zero, zero, zero
    last = -1
    for first in range(0, block + 1, CHUNK):
        other = first + tl.arange(0, CHUNK)
        before = other < block
        of_image = tl.load(images + other, mask=before, other=0)
        of_video = tl.load(videos + other, mask=before, other=0)
        of_kept = tl.load(kept_tokens + other, mask=before, other=0)
        if UNDECIDED:
            # The last marker before each of the blocks counts if it is in that block's row.
            has_forerunner = (other > 0) & (other <= block)
            marker = tl.load(marked + other - 1, mask=has_forerunner, other=-1)
            marker = tl.maximum(tl.associative_scan(marker, 0, _larger), last)
            last = tl.max(marker, 0)
            in_video = (marker >= other // blocks_in_row * seq_len * 2) & ((marker & 1) == 1)
            of_either = tl.load(undecided + other, mask=before, other=0)
            of_image += tl.where(in_video, 0, of_either)
            of_video += tl.where(in_video, of_either, 0)
            opened += (in_video & (other == block)).to(tl.int32)
        in_row = other >= row * blocks_in_row
        image, video, kept = image + of_image, video + of_video, kept + of_kept
        row_image += tl.where(in_row, of_image, 0)
        row_video += tl.where(in_row, of_video, 0)
        row_kept += tl.where(in_row, of_kept, 0)
    return tl.reduce((image, video, kept, row_image, row_video, row_kept, opened), 0, _add)


@triton.jit(
    do_not_specialize=["seq_len", "num_rows", "num_images", "num_items", "steps"],
    do_not_specialize_on_alignment=_ARGUMENTS,
)
def write(
    ids,
    mask,
    types,
    sizes,
    positions,
    deltas,
    work,
    seq_len,
    num_rows,
    num_images,
    num_items,
    steps,
    IMAGE: tl.constexpr,
    VIDEO_START: tl.constexpr,
    VIDEO_END: tl.constexpr,
    LAST: tl.constexpr,
    PADDING: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the block's positions, and raise its row's delta and the faults by what it holds.

    The faults are: a group that other tokens interrupt, or a code of the mask or the types that is
    none; a grid that is not sound; and fewer or more placeholders than the grids describe.
    """
    block = tl.program_id(0)
    row, at, token, inside, kept, wrong = _load(ids, mask, sizes, seq_len, BLOCK)
    row_start = row * tl.cdiv(seq_len, BLOCK)
    _, _, _, _, kept_tokens, items = _block_rows(work, tl.num_programs(0))
    ends, starts, widths, areas, groups, spans, moved = _item_rows(items, num_items)
    UNDECIDED: tl.constexpr = LAST and types is None
    images, videos, all_kept, row_images, row_videos, row_kept, opened = _counts_before(
        work, row, seq_len, UNDECIDED, BLOCK, CHUNK
    )
    image, video, codes = _kinds(
        types, work, at, token, inside, kept, opened, row_start,
        IMAGE, VIDEO_START, VIDEO_END, LAST, CHUNK,
    )  # fmt: skip
    if types is not None:
        wrong |= kept & ((codes < 0) | (codes > 2))
    visual = image | video

    # Three counts in one scan: images, videos, text.
    counts = image.to(tl.int64) + (video.to(tl.int64) << 16) + ((kept & ~visual).to(tl.int64) << 32)
    counts = tl.cumsum(counts, 0)
    image_tokens = tl.load(ends + num_images - 1, mask=num_images > 0, other=0)
    image_rank = images + (counts & 0xFFFF).to(tl.int32) - 1
    video_rank = image_tokens + videos + ((counts >> 16) & 0xFFFF).to(tl.int32) - 1
    rank = tl.where(video, video_rank, image_rank)
    # The same for either kind at the start of the row and at that of the block.
    corner = tl.arange(0, 4)
    at_block = corner % 2 == 1
    corner_rank = tl.where(at_block, images, images - row_images)
    corner_video_rank = image_tokens + tl.where(at_block, videos, videos - row_videos)
    corner_rank = tl.where(corner < 2, corner_rank, corner_video_rank)
    item, corner_item = _items_of(ends, rank, visual, corner_rank, num_items, steps)
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

    # By how much the groups that begin before the block, but not before its row, move the position.
    moves = tl.cdiv(corner_rank - corner_start, tl.maximum(corner_group, 1))
    moves = moves * corner_span + corner_moved
    before = row_kept - row_images - row_videos + tl.sum(tl.where(at_block, moves, -moves), 0)
    place = tl.where(found, (rank - start) % group, 0)
    begins = found & (place == 0)
    moves = tl.where(begins, span, (kept & ~found).to(tl.int32))
    base = before + tl.cumsum(moves, 0) - span
    frame = place // area
    in_frame = place - frame * area
    line = in_frame // width
    time, height, across = base + frame, base + line, base + in_frame - line * width
    num_tokens = num_rows.to(tl.int64) * seq_len
    tl.store(positions + at, tl.where(kept, time, PADDING), mask=inside)
    tl.store(positions + num_tokens + at, tl.where(kept, height, PADDING), mask=inside)
    tl.store(positions + 2 * num_tokens + at, tl.where(kept, across, PADDING), mask=inside)

    length = seq_len
    if sizes is not None:
        length = (tl.load(sizes) & 0x7FFFFFFF).to(tl.int32)
    if not PADDED:
        length = _sum(kept_tokens, row_start, row_start + tl.cdiv(seq_len, BLOCK), CHUNK)
    largest = tl.maximum(time, tl.maximum(height, across))
    next_position = tl.max(tl.where(kept, largest + 1, 0), 0)
    tl.atomic_max(deltas + row, (next_position - length).to(tl.int64), sem="relaxed")

    # A group is whole if no text and no start of a row comes between its first and last token. Both
    # are counted up to every token; the difference is never negative, nor then is any group's.
    faults = _faults(work)
    passed = (counts >> 32) + (all_kept - images - videos + row)
    is_last = found & (place == group - 1)
    between = tl.where(is_last, passed, 0) - tl.where(begins, passed, 0) + wrong.to(tl.int64)
    tl.atomic_add(faults, tl.sum(between, 0), sem="relaxed")
    if block == tl.num_programs(0) - 1:
        images += tl.sum(image.to(tl.int32), 0)
        videos += tl.sum(video.to(tl.int32), 0)
        tokens = tl.load(ends + num_items - 1, mask=num_items > 0, other=0)
        misfit = (images != image_tokens) | (videos != tokens - image_tokens)
        tl.store(faults + 2, misfit.to(tl.int64))
