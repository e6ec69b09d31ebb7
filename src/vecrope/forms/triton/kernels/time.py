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
    if DTYPE == tl.float64:
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
        READ_AS: the dtype of the seconds.
        COUNT_AS: that of the products with the number of a frame.
    """
    offset = frame
    if RATE is not None:
        step = load_seconds(seconds, item - num_images, is_video, DEFAULT).to(READ_AS)
        rate = tl.full(frame.shape, RATE, tl.float64)
        counted = _rounded(frame, COUNT_AS)
        if RATE_FIRST:
            passed = _product(counted, _rounded(_product(step, rate, READ_AS), COUNT_AS), COUNT_AS)
        else:
            passed = _product(counted, _rounded(step, COUNT_AS), COUNT_AS)
            passed = _product(passed, _rounded(rate, COUNT_AS), COUNT_AS)
        offset = _whole(tl.where(is_video, passed, counted), COUNT_AS).to(frame.dtype)
    if STILL_IMAGES:
        offset = tl.where(is_video, offset, 0)
    return offset
