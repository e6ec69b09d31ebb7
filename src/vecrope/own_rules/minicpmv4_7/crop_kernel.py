"""The walk over the crops as one Triton program."""

import triton
import triton.language as tl

_SIZES = ["num_crops", "num_rows", "num_images", "num_sizes", "stride"]


@triton.jit
def _take_size(sizes, row, stop, FACTOR: tl.constexpr, MAX_SIDE: tl.constexpr):
    """Return the next crop's height and width in tokens, 0 if there is none, and the row behind.

    Rows of zeros are skipped.
    """
    empty = row < stop
    while empty:
        empty = (tl.load(sizes + 2 * row) == 0) & (tl.load(sizes + 2 * row + 1) == 0)
        row += empty.to(tl.int64)
        empty = empty & (row < stop)
    is_given = row < stop
    height = tl.load(sizes + 2 * row, mask=is_given, other=0) // FACTOR
    width = tl.load(sizes + 2 * row + 1, mask=is_given, other=0) // FACTOR
    height = tl.minimum(tl.maximum(height, 0), MAX_SIDE - 1)
    width = tl.minimum(tl.maximum(width, 0), MAX_SIDE - 1)
    return height, width, row + is_given.to(tl.int64)


@triton.jit
def _past(
    ids, place, limit, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    NEWLINE: tl.constexpr,
):  # fmt: skip
    """Return the first place from one on that holds none of five ids, or the limit."""
    inside = place < limit
    while inside:
        token = tl.load(ids + place)
        inside = (token == A) | (token == B) | (token == C) | (token == D) | (token == NEWLINE)
        place += inside.to(tl.int64)
        inside = inside & (place < limit)
    return tl.minimum(place, limit)


@triton.jit
def _put(at, stride, begin, time, top, left, height, width, tall, wide):
    """Write a piece, and return where the next goes."""
    tl.store(at, begin)
    tl.store(at + stride, time)
    tl.store(at + 2 * stride, top)
    tl.store(at + 3 * stride, left)
    tl.store(at + 4 * stride, tl.maximum(width, 1))
    tl.store(at + 5 * stride, height - 1)
    tl.store(at + 6 * stride, width - 1)
    tl.store(at + 7 * stride, tl.maximum(height // 2, 1))
    tl.store(at + 8 * stride, tl.maximum(width // 2, 1))
    tl.store(at + 9 * stride, tall - 1)
    tl.store(at + 10 * stride, wide - 1)
    return at + 1


@triton.jit(do_not_specialize=_SIZES)
def walk(
    at,
    ids,
    video,
    bounds,
    sizes,
    table,
    num_crops,
    num_rows,
    num_images,
    num_sizes,
    stride,
    IMAGE_START: tl.constexpr,
    IMAGE_END: tl.constexpr,
    SLICE_START: tl.constexpr,
    SLICE_END: tl.constexpr,
    NEWLINE: tl.constexpr,
    NEWLINE_CLOSES: tl.constexpr,
    FACTOR: tl.constexpr,
    MAX_SIDE: tl.constexpr,
):
    """Write what `vecrope.own_rules.minicpmv4_7.static.find_pieces` returns, of its arguments."""
    zero = tl.zeros((), tl.int64)
    one = zero + 1
    crop, image, piece = zero, zero, table
    film = zero + num_images
    for row in range(num_rows):
        start = tl.load(bounds + row)
        row_end = tl.load(bounds + row + 1)
        done, now, apart = start, zero, zero
        piece = _put(piece, stride, start, now, now, now, one, one, zero, zero)
        first = tl.load(at + crop, mask=crop < num_crops, other=2**62)
        while first < row_end:
            of_video = tl.load(video + first) != 0
            size = tl.where(of_video, film, image)
            most = tl.where(of_video, num_sizes, num_images)
            # Slices are tiled line by line: the first one with more than its two markers behind it
            # ends a line, and so all lines. All are placed by the size of the first.
            begun, head, count, columns, end = size, crop, zero, zero, zero
            here, following, unit_height, unit_width = first, first, zero, zero
            going = first < row_end
            while going:
                height, width, size = _take_size(sizes, size, most, FACTOR, MAX_SIDE)
                ends_line = (columns == 0) & (count > 1) & (here - end > 2)
                columns = tl.where(ends_line, count - 1, columns)
                unit_height = tl.where(count > 1, unit_height, height)
                unit_width = tl.where(count > 1, unit_width, width)
                end = here + height * width
                count += 1
                crop += 1
                following = tl.load(at + crop, mask=crop < num_crops, other=2**62)
                going = following < row_end
                going = going & (tl.load(ids + following - 1, mask=going, other=-1) == SLICE_START)
                here = following
            # Lines of different lengths are taken for one.
            slices = count - 1
            uneven = (columns == 0) | (slices % tl.maximum(columns, 1) != 0)
            columns = tl.maximum(tl.where(uneven, slices, columns), 1)
            canvas_height = tl.maximum(slices // columns, 1) * unit_height
            canvas_width = columns * unit_width

            # Pictures with nothing but markers and newlines in between, if any, stay apart.
            limit = tl.where(following < row_end, following - 1, row_end)
            stop = _past(
                ids, end, limit, IMAGE_START, IMAGE_END, SLICE_START, SLICE_END,
                NEWLINE if NEWLINE_CLOSES else IMAGE_START,
            )  # fmt: skip
            passed = _past(
                ids, stop, limit, IMAGE_START, IMAGE_END, SLICE_START, SLICE_END, NEWLINE
            )
            now += first - 1 - done + apart
            apart = ((stop < limit) & (passed >= limit)).to(tl.int64)

            size = begun
            for number in range(count):
                height, width, size = _take_size(sizes, size, most, FACTOR, MAX_SIDE)
                here = tl.load(at + head + number)
                end = here + height * width
                is_last = number + 1 == count
                limit = tl.load(at + head + number + 1, mask=is_last == 0, other=0) - 1
                limit = tl.where(is_last, stop, limit)
                # A thumbnail is spread over the canvas; its markers are one further out.
                out = (zero + number == 0).to(tl.int64)
                before = zero + number - 1 + out
                top = now + before // columns * unit_height
                left = now + before % columns * unit_width
                extent_height = tl.where(out > 0, canvas_height, height)
                extent_width = tl.where(out > 0, canvas_width, width)
                goes_on = (out == 0) & (zero + number < slices)
                piece = _put(
                    piece, stride, tl.maximum(here - 1, start), now,
                    tl.maximum(top - out, 0), tl.maximum(left - out, 0), one, one, one, one,
                )  # fmt: skip
                piece = _put(
                    piece, stride, here, now, top, left, height, width, extent_height, extent_width
                )
                piece = _put(
                    piece, stride, tl.minimum(end, limit), now,
                    top + extent_height - 1 + out, left + extent_width - 1 + out,
                    one, one, one, one,
                )  # fmt: skip
                piece = _put(
                    piece, stride, tl.minimum(end + 1, limit), now,
                    tl.where(goes_on, top + unit_height - 1, now),
                    tl.where(goes_on, now + canvas_width, now), one, one + 2**40, one, one,
                )  # fmt: skip
            now += tl.maximum(canvas_height, canvas_width) + 1
            piece = _put(piece, stride, stop, now, now, now, one, one, zero, zero)
            image, film = tl.where(of_video, image, size), tl.where(of_video, size, film)
            first, done = following, stop
