"""The walk over the crops as one Triton program."""

import triton
import triton.language as tl

_SIZES = ["num_crops", "num_rows", "num_images", "num_sizes", "stride"]


@triton.jit
def _next_size(sizes, row, stop):
    """Return the first row from `row` on that is not zeros, or `stop`."""
    empty = row < stop
    while empty:
        empty = (tl.load(sizes + 2 * row) == 0) & (tl.load(sizes + 2 * row + 1) == 0)
        row += empty.to(tl.int64)
        empty = empty & (row < stop)
    return row


@triton.jit
def _take_size(sizes, row, stop, FACTOR: tl.constexpr, MAX_SIDE: tl.constexpr):
    """Return the next crop's height and width in tokens, the row behind it, and if it has a size.

    Without one the sides are 0.
    """
    row = _next_size(sizes, row, stop)
    is_given = row < stop
    height = tl.load(sizes + 2 * row, mask=is_given, other=0) // FACTOR
    width = tl.load(sizes + 2 * row + 1, mask=is_given, other=0) // FACTOR
    height = tl.minimum(tl.maximum(height, 0), MAX_SIDE - 1)
    width = tl.minimum(tl.maximum(width, 0), MAX_SIDE - 1)
    return height, width, row + is_given.to(tl.int64), is_given


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
def _put(begins, table, number, stride, begin, start, stop, origin, shift, cells, width):
    """Write what all entries have, and return where the rest of this one goes."""
    at = table + number + 1
    tl.store(begins + number, begin)
    tl.store(at, start)
    tl.store(at + stride, stop)
    tl.store(at + 2 * stride, origin)
    tl.store(at + 3 * stride, shift)
    tl.store(at + 4 * stride, cells - 1)
    tl.store(at + 5 * stride, width)
    return at + 6 * stride


@triton.jit
def _put_pair(at, stride, height, width):
    """Write two columns of an entry, and return where the next goes."""
    tl.store(at, height)
    tl.store(at + stride, width)
    return at + 2 * stride


@triton.jit(do_not_specialize=_SIZES)
def walk(
    at,
    ids,
    video,
    bounds,
    sizes,
    begins,
    table,
    faults,
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
    LIMIT: tl.constexpr,
):
    """Write what `vecrope.own_rules.minicpmv4_7.static.find_entries` returns, of its arguments."""
    zero = tl.zeros((), tl.int64)
    number, crop, image, wrong = zero, zero, zero, zero
    film = zero + num_images
    for row in range(num_rows):
        start = tl.load(bounds + row)
        row_end = tl.load(bounds + row + 1)
        # A row's start is an entry without tokens.
        rest = _put(
            begins, table, number, stride, start, start, start, zero, -start, zero, zero + 1
        )
        for _ in range(7):
            rest = _put_pair(rest, stride, zero, zero)
        number += 1
        shift, apart = -start, zero
        first = tl.load(at + crop, mask=crop < num_crops, other=2**62)
        wrong += ((first == start) & (first < row_end)).to(tl.int64)
        while first < row_end:
            of_video = tl.load(video + first) != 0
            size = tl.where(of_video, film, image)
            most = tl.where(of_video, num_sizes, num_images)
            # Slices are tiled line by line: the first one with more than its two markers behind it
            # ends a line, and so all lines. All are placed by the size of the first.
            begun, head, count, columns, end = size, crop, zero, zero, zero
            tall, wide, unit_height, unit_width = zero, zero, zero, zero
            here, following = first, first
            going = first < row_end
            while going:
                height, width, size, has_size = _take_size(sizes, size, most, FACTOR, MAX_SIDE)
                wrong += 1 - has_size.to(tl.int64)
                ends_line = (columns == 0) & (count > 1) & (here - end > 2)
                columns = tl.where(ends_line, count - 1, columns)
                tall, wide = tl.where(count > 0, tall, height), tl.where(count > 0, wide, width)
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
            stretched = ((tall - 1) * (canvas_height - 1) >= LIMIT) | (
                (wide - 1) * (canvas_width - 1) >= LIMIT
            )
            stretched = stretched & ((tall != canvas_height) | (wide != canvas_width))
            wrong += stretched.to(tl.int64)

            # Pictures with nothing but markers and newlines in between, if any, stay apart.
            limit = tl.where(following < row_end, following - 1, row_end)
            stop = _past(
                ids, end, limit, IMAGE_START, IMAGE_END, SLICE_START, SLICE_END,
                NEWLINE if NEWLINE_CLOSES else IMAGE_START,
            )  # fmt: skip
            passed = _past(
                ids, stop, limit, IMAGE_START, IMAGE_END, SLICE_START, SLICE_END, NEWLINE
            )
            origin = first - 1 + shift + apart
            apart = ((stop < limit) & (passed >= limit)).to(tl.int64)
            shift = origin + tl.maximum(canvas_height, canvas_width) + 1 - stop

            size = begun
            for at_crop in range(count):
                height, width, size, has_size = _take_size(sizes, size, most, FACTOR, MAX_SIDE)
                here = tl.load(at + head + at_crop)
                # A thumbnail is spread over the canvas; its markers are one further out.
                out = (zero + at_crop == 0).to(tl.int64)
                before = zero + at_crop - 1 + out
                top = before // columns * unit_height
                left = before % columns * unit_width
                extent_height = tl.where(out > 0, canvas_height, height)
                extent_width = tl.where(out > 0, canvas_width, width)
                goes_on = (out == 0) & (zero + at_crop < slices)
                rest = _put(
                    begins, table, number, stride, tl.maximum(here - 1, start), here, stop,
                    origin, shift, height * width, tl.maximum(width, 1),
                )  # fmt: skip
                rest = _put_pair(rest, stride, top, left)
                rest = _put_pair(rest, stride, top - out, left - out)
                rest = _put_pair(
                    rest, stride, top + extent_height - 1 + out, left + extent_width - 1 + out
                )
                rest = _put_pair(
                    rest, stride, tl.where(goes_on, top + unit_height - 1, 0),
                    tl.where(goes_on, canvas_width, 0),
                )  # fmt: skip
                rest = _put_pair(rest, stride, height - 1, width - 1)
                rest = _put_pair(
                    rest, stride, tl.maximum(height // 2, 1), tl.maximum(width // 2, 1)
                )
                rest = _put_pair(rest, stride, extent_height - 1, extent_width - 1)
                number += 1
            image, film = tl.where(of_video, image, size), tl.where(of_video, size, film)
            first = following
    image = _next_size(sizes, image, num_images)
    film = _next_size(sizes, film, num_sizes)
    tl.store(faults, wrong)
    tl.store(faults + 1, ((image < num_images) | (film < num_sizes)).to(tl.int64))
