"""Tells the tokens of a block apart: masked, text, image or video."""

import triton
import triton.language as tl

from vecrope.forms.triton.kernels.workspace import block_rows, sum_of_blocks


@triton.jit
def larger(left, right):
    """Return the larger one, for a running maximum."""
    return tl.maximum(left, right)


@triton.jit
def load_tokens(ids, mask, sizes, seq_len, BLOCK: tl.constexpr):
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
def markers_of(
    at, token, kept, VIDEO_START: tl.constexpr, VIDEO_END: tl.constexpr, LAST: tl.constexpr
):
    """Return numbers whose running maximum, or sum, says at each token whether a video is open."""
    opens = kept & (token == VIDEO_START)
    closes = kept & (token == VIDEO_END)
    if LAST:
        return tl.where(opens | closes, at.to(tl.int32) * 2 + opens.to(tl.int32), -1)
    return opens.to(tl.int32) - closes.to(tl.int32)


@triton.jit
def kinds_of(
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

    The third is the types, or else what `markers_of` returns, as a running maximum or sum.
    """
    if types is not None:
        codes = tl.load(types + at, mask=inside, other=0)
        image, video = kept & (codes == 1), kept & (codes == 2)
    else:
        codes = markers_of(at, token, kept, VIDEO_START, VIDEO_END, LAST)
        if LAST:
            codes = tl.associative_scan(codes, 0, larger)
            in_video = tl.where(codes < 0, opened, codes & 1)
        else:
            marked = block_rows(work, 0)[0]
            codes = tl.cumsum(codes, 0) + sum_of_blocks(marked, row_start, tl.program_id(0), CHUNK)
            in_video = (codes > 0).to(tl.int32)
        placeholder = kept & (token == IMAGE)
        image, video = placeholder & (in_video == 0), placeholder & (in_video == 1)
    return image, video, codes
