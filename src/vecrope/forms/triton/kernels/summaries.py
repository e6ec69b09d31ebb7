"""The first pass: each block is summed up in a few numbers, and the item table is written."""

import triton
import triton.language as tl

from vecrope.forms.triton.constants import ARGUMENTS
from vecrope.forms.triton.kernels.blocks import block_of, load_tokens, places_of, store_block
from vecrope.forms.triton.kernels.classify import kinds_of, markers_of
from vecrope.forms.triton.kernels.items import make_items
from vecrope.forms.triton.kernels.workspace import block_rows, three_counts


@triton.jit(
    do_not_specialize=["num_tokens", "seq_len", "num_rows"],
    do_not_specialize_on_alignment=ARGUMENTS,
)
def mark(
    ids,
    mask,
    bounds,
    sizes,
    work,
    num_tokens,
    seq_len,
    num_rows,
    VIDEO_START: tl.constexpr,
    VIDEO_END: tl.constexpr,
    IGNORE_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write each block's video starts less its video ends."""
    block = tl.program_id(0)
    row, first, begin, end = block_of(
        block, bounds, sizes, num_tokens, seq_len, num_rows, BLOCK, CHUNK
    )
    at = places_of(block, first, begin, BLOCK)
    token, _, kept, _ = load_tokens(ids, mask, bounds, sizes, row, begin, end, at, IGNORE_MASK)
    markers = markers_of(at, token, kept, VIDEO_START, VIDEO_END, False)
    tl.store(block_rows(work, 0)[0] + block, tl.sum(markers, 0))


@triton.jit(
    do_not_specialize=["num_tokens", "seq_len", "num_rows", "num_images", "num_items"],
    do_not_specialize_on_alignment=ARGUMENTS,
)
def summarise(
    ids,
    mask,
    types,
    bounds,
    seconds,
    sizes,
    image_grids,
    video_grids,
    deltas,
    work,
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
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write each block's numbers and, in one more program, the item table."""
    block = tl.program_id(0)
    num_blocks = tl.num_programs(0) - 1
    marked, undecided, counts, blocks, items = block_rows(work, num_blocks)
    if block == num_blocks:
        make_items(
            image_grids, video_grids, seconds, bounds, sizes, work, items,
            num_tokens, num_rows, num_images, num_items,
            MERGE, MERGED_FRAMES, SEPARATE, THW, ONE_FRAME, ROUND_GRID_SIDES,
            STILL_IMAGES, RATE, RATE_FIRST, DEFAULT, READ_AS, COUNT_AS, CHUNK,
        )  # fmt: skip
    else:
        row, first, begin, end = block_of(
            block, bounds, sizes, num_tokens, seq_len, num_rows, BLOCK, CHUNK
        )
        if bounds is not None:
            store_block(blocks, num_blocks, block, row, first, begin, end)
        at = places_of(block, first, begin, BLOCK)
        token, inside, kept, _ = load_tokens(
            ids, mask, bounds, sizes, row, begin, end, at, IGNORE_MASK
        )
        # At the start of a row no video is open, which is like a marker that closes one.
        starts_row = block == first
        image, video, codes = kinds_of(
            types, work, block, first, at, token, inside, kept, tl.where(starts_row, 0, -1),
            IMAGE, VIDEO, VIDEO_START, VIDEO_END, RULE, CHUNK,
        )  # fmt: skip
        if RULE == "last" and types is None:
            rest = kept & (token == IMAGE) & ~image & ~video
            closed = tl.where(starts_row, begin * 2, -1)
            tl.store(marked + block, tl.maximum(tl.max(codes, 0), closed))
            tl.store(undecided + block, tl.sum(rest.to(tl.int32), 0))
        tl.store(counts + block, tl.sum(three_counts(image, video, kept), 0))
        # There are at least as many blocks as rows.
        if block < num_rows:
            tl.store(deltas + block, -(2**63))
