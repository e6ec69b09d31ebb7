"""Tells the tokens of a block apart: masked, text, image or video."""

import triton
import triton.language as tl

from vecrope.forms.triton.kernels.workspace import block_rows, sum_of_blocks


@triton.jit
def larger(left, right):
    """Return the larger one, for a running maximum."""
    return tl.maximum(left, right)


@triton.jit
def equals(token, ID: tl.constexpr, exists):
    """Return which of the tokens that exist have an id, which may be None."""
    if ID is None:
        found = exists & (token != token)
    else:
        found = exists & (token == ID)
    return found


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
    block,
    first,
    at,
    token,
    inside,
    kept,
    opened,
    IMAGE: tl.constexpr,
    VIDEO: tl.constexpr,
    VIDEO_START: tl.constexpr,
    VIDEO_END: tl.constexpr,
    RULE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Return which tokens are an image's and which a video's, and what says so.

    By the last marker `opened` is 1 if the one before the block is a video start, 0 if it is none,
    and -1 if that is not known: then a placeholder before the first marker is neither.

    The third is the types, or what `markers_of` returns, as a running maximum or sum, or the ids.
    """
    if types is not None:
        codes = tl.load(types + at, mask=inside, other=0)
        image, video = kept & (codes == 1), kept & (codes == 2)
    elif RULE == "ids":
        codes = token
        image, video = equals(token, IMAGE, kept), equals(token, VIDEO, kept)
    else:
        codes = markers_of(at, token, kept, VIDEO_START, VIDEO_END, RULE == "last")
        if RULE == "last":
            codes = tl.associative_scan(codes, 0, larger)
            in_video = tl.where(codes < 0, opened, codes & 1)
        else:
            marked = block_rows(work, 0)[0]
            codes = tl.cumsum(codes, 0) + sum_of_blocks(marked, first, block, CHUNK)
            in_video = (codes > 0).to(tl.int32)
        placeholder = kept & (token == IMAGE)
        image, video = placeholder & (in_video == 0), placeholder & (in_video == 1)
    return image, video, codes


@triton.jit
def open_markers_of(
    token,
    kept,
    codes,
    opened,
    RULE: tl.constexpr,
    VISION_START: tl.constexpr,
    OPEN_MARKERS: tl.constexpr,
):
    """Return the markers that are open behind each token, as `PlanTable.rows` counts them.

    Args:
        token: the ids.
        kept: which are not masked.
        codes: the third that `kinds_of` returns.
        opened: what it is given.
        RULE: by which placeholders are told apart.
        VISION_START: the marker that must stand right before a group; None: none must.
        OPEN_MARKERS: the answer where it does not depend on the tokens, or None.
    """
    if OPEN_MARKERS is not None:
        answer = token * 0 + OPEN_MARKERS
    elif RULE == "count":
        answer = codes
    elif RULE == "last":
        answer = tl.where(codes < 0, opened, codes & 1)
    else:
        answer = (kept & (token == VISION_START)).to(tl.int32)
    return answer
