"""The first pass: each block is summed up in a few numbers, and the item table is written."""

import triton
import triton.language as tl

from vecrope.forms.triton.constants import ARGUMENTS
from vecrope.forms.triton.kernels.classify import kinds_of, load_tokens, markers_of
from vecrope.forms.triton.kernels.items import make_items
from vecrope.forms.triton.kernels.workspace import block_rows


@triton.jit(do_not_specialize=["seq_len"], do_not_specialize_on_alignment=ARGUMENTS)
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
    _, at, token, _, kept, _ = load_tokens(ids, mask, sizes, seq_len, BLOCK)
    markers = markers_of(at, token, kept, VIDEO_START, VIDEO_END, False)
    tl.store(block_rows(work, 0)[0] + tl.program_id(0), tl.sum(markers, 0))


@triton.jit(
    do_not_specialize=["seq_len", "num_images", "num_items"],
    do_not_specialize_on_alignment=ARGUMENTS,
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
    marked, undecided, images, videos, kept_tokens, items = block_rows(work, num_blocks)
    if block == num_blocks:
        make_items(
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
        row, at, token, inside, kept, _ = load_tokens(ids, mask, sizes, seq_len, BLOCK)
        row_start = row * tl.cdiv(seq_len, BLOCK)
        image, video, markers = kinds_of(
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
