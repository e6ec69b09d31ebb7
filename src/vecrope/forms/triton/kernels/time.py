"""At which temporal offset a frame of an item lies: its number, 0, or the time passed."""

import triton
import triton.language as tl


@triton.jit
def _rounded(values, DTYPE: tl.constexpr):
    """Return numbers in a floating-point dtype, narrow ones by way of float32 as torch does."""
    if DTYPE == tl.float64:
        values = values.to(tl.float64)
    else:
        values = values.to(tl.float32).to(DTYPE)
    return values


@triton.jit
def _product(left, right, DTYPE: tl.constexpr):
    """Return the product, rounded to the precision as torch rounds it."""
    if DTYPE == tl.float64 or DTYPE == tl.int64:
        product = left.to(tl.float64) * right.to(tl.float64)
    else:
        # Of two narrower numbers it is exact before it is rounded.
        product = (left.to(tl.float32) * right.to(tl.float32)).to(DTYPE)
    return product


@triton.jit
def _whole(values, DTYPE: tl.constexpr):
    """Return numbers rounded towards zero."""
    if DTYPE == tl.float64:
        values = values.to(tl.int64)
    else:
        values = values.to(tl.float32).to(tl.int64)
    return values


@triton.jit
def load_seconds(seconds, video, is_video, DEFAULT: tl.constexpr):
    """Return the seconds of a temporal step of each video, of the dtype in which they are given."""
    if seconds is None:
        value = tl.full(video.shape, DEFAULT, tl.float64)
    else:
        value = tl.load(seconds + video, mask=is_video, other=0)
    return value


@triton.jit
def video_time_scale(
    seconds,
    video,
    is_video,
    RATE: tl.constexpr,
    RATE_FIRST: tl.constexpr,
    DEFAULT: tl.constexpr,
    READ_AS: tl.constexpr,
    COUNT_AS: tl.constexpr,
):
    """Return the two factors by which each video's frames are counted, in this order.

    Whole numbers of seconds (`READ_AS` int64) are cut, and counted in float64.
    """
    step = load_seconds(seconds, video, is_video, DEFAULT)
    if READ_AS == tl.int64:
        step = step.to(tl.float64).to(tl.int64).to(tl.float64)
    else:
        step = step.to(READ_AS)
    rate = tl.full(video.shape, RATE, tl.float64)
    if RATE_FIRST:
        step, rate = _product(step, rate, READ_AS), tl.full(video.shape, 1, tl.float64)
    return _rounded(step, COUNT_AS), _rounded(rate, COUNT_AS)


@triton.jit
def scaled(frame, step, scale, DTYPE: tl.constexpr):
    """Return a frame's number times two factors, each product rounded, as a whole number."""
    passed = _product(_product(_rounded(frame, DTYPE), step, DTYPE), scale, DTYPE)
    return _whole(passed, DTYPE).to(frame.dtype)


@triton.jit
def temporal_offset(
    frame,
    item,
    is_video,
    num_images,
    seconds,
    STILL_IMAGES: tl.constexpr,
    RATE: tl.constexpr,
    RATE_FIRST: tl.constexpr,
    DEFAULT: tl.constexpr,
    READ_AS: tl.constexpr,
    COUNT_AS: tl.constexpr,
):
    """Return the temporal offset of the frame of this number in its group.

    Args:
        frame: the numbers.
        item: of each, the number of its item.
        is_video: whether that is a video.
        num_images: the items that are images come first.
        seconds: of a temporal step of each video; None: the default.
        STILL_IMAGES: whether all frames of an image lie at 0.
        RATE: positions a second; None: the number of a video's frame is its offset.
        RATE_FIRST: the step times the rate is rounded first, not the step times the number.
        DEFAULT: the default of the seconds.
        READ_AS: the dtype in which the seconds are read.
        COUNT_AS: that of the products with the number of a frame.
    """
    offset = frame
    if RATE is not None:
        step, scale = video_time_scale(
            seconds, item - num_images, is_video, RATE, RATE_FIRST, DEFAULT, READ_AS, COUNT_AS
        )
        counted = _whole(_rounded(frame, COUNT_AS), COUNT_AS).to(frame.dtype)
        offset = tl.where(is_video, scaled(frame, step, scale, COUNT_AS), counted)
    if STILL_IMAGES:
        offset = tl.where(is_video, offset, 0)
    return offset
