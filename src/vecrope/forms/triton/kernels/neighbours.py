"""What stands before a group: the marker that it needs, or the frame that it must not touch."""

import triton
import triton.language as tl


@triton.jit
def lacks_marker(ids, at, begin, starts, VISION_START: tl.constexpr):
    """Return which of the tokens that start something have no marker right before them."""
    has_neighbour = starts & (at > begin)
    neighbour = tl.load(ids + at - 1, mask=has_neighbour, other=0)
    return starts & ~(has_neighbour & (neighbour == VISION_START))


@triton.jit
def touches_frame(
    ids, mask, types, at, begin, starts, VIDEO: tl.constexpr, IGNORE_MASK: tl.constexpr
):
    """Return which of the first tokens of frames have a video's token before them in the row.

    Masked tokens do not stand in between. A placeholder right before a frame that is not its
    video's first is of the same video: a marker would stand in front of another.
    """
    neighbour = at - 1
    if mask is not None and not IGNORE_MASK:
        masked = starts & (neighbour >= begin)
        masked &= tl.load(mask + neighbour, mask=masked, other=1) == 0
        while tl.max(masked.to(tl.int32), 0) > 0:
            neighbour = tl.where(masked, neighbour - 1, neighbour)
            masked &= neighbour >= begin
            masked &= tl.load(mask + neighbour, mask=masked, other=1) == 0
    exists = starts & (neighbour >= begin)
    if types is not None:
        is_video = tl.load(types + neighbour, mask=exists, other=0) == 2
    else:
        is_video = tl.load(ids + neighbour, mask=exists, other=0) == VIDEO
    return exists & is_video
