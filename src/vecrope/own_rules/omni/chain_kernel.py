"""The walk over the items as one Triton program; all arithmetic of positions is in float64."""

import triton
import triton.language as tl


@triton.jit
def _near(value, ROUNDS: tl.constexpr):
    """Round a position, or a time, to float32 where it is one."""
    if ROUNDS:
        value = value.to(tl.float32).to(tl.float64)
    return value


@triton.jit
def _next_grid(grids, row, stop, MERGE: tl.constexpr):
    """Return the first row from `row` on that describes tokens, or `stop`."""
    empty = row < stop
    while empty:
        at = grids + 3 * row
        empty = (tl.load(at) < 1) | (tl.load(at + 1) < MERGE) | (tl.load(at + 2) < MERGE)
        row += empty.to(tl.int64)
        empty = empty & (row < stop)
    return row


@triton.jit
def _audio_tokens(mel_frames, WINDOW: tl.constexpr):
    """Return what `audio_tokens` does, and 0 of a negative length."""
    if WINDOW == 0:
        tokens = (mel_frames + 1) // 4
    else:
        tokens = (mel_frames % WINDOW + 7) // 8 + mel_frames // WINDOW * 13
    return tl.where(mel_frames > 0, tokens, 0)


@triton.jit
def _next_audio(lengths, row, stop, WINDOW: tl.constexpr):
    """Return the first audio from `row` on that has tokens, or `stop`."""
    empty = row < stop
    while empty:
        empty = _audio_tokens(tl.load(lengths + row), WINDOW) < 1
        row += empty.to(tl.int64)
        empty = empty & (row < stop)
    return row


@triton.jit
def _time(
    frame, seconds, rate, SECONDS_FIRST: tl.constexpr, F32: tl.constexpr, WHOLE: tl.constexpr
):
    """Return the temporal offset of a frame, each product rounded as the upstream rounds it."""
    if SECONDS_FIRST:
        time = _near(_near(frame * seconds, F32) * rate, F32)
    else:
        time = _near(frame * _near(seconds * rate, F32), F32)
    if WHOLE:
        time = tl.floor(time)
    return time


@triton.jit
def _put(entries, number, num_entries, place, base, frames, in_frame, width, seconds):
    """Write an entry; of several at one place the last counts."""
    at = entries + number
    tl.store(at, place)
    tl.store(at + num_entries, base)
    tl.store(at + 2 * num_entries, frames)
    tl.store(at + 3 * num_entries, in_frame)
    tl.store(at + 4 * num_entries, width)
    tl.store(at + 5 * num_entries, seconds)
    return number + 1


@triton.jit
def follow(
    at,
    ids,
    marked,
    bounds,
    grids,
    seconds,
    lengths,
    rates,
    entries,
    largest,
    num_items,
    num_rows,
    num_images,
    num_visuals,
    num_audios,
    num_entries,
    IMAGE: tl.constexpr,
    VIDEO: tl.constexpr,
    MERGE: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    ROUNDS: tl.constexpr,
    F32: tl.constexpr,
    SECONDS_FIRST: tl.constexpr,
    WHOLE: tl.constexpr,
    INTERLEAVE: tl.constexpr,
    MARKERS: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Write what `vecrope.own_rules.omni.static` reads."""
    rate = tl.load(rates)
    num_tokens = tl.load(bounds + num_rows)
    zero = tl.zeros((), tl.int64)
    row, number, image, audio, begin = zero, zero, zero, zero, zero
    video = zero + num_images
    position = tl.zeros((), tl.float64)
    reached = position - 1
    for item in range(num_items + 1):
        place = tl.load(at + item, mask=item < num_items, other=num_tokens)
        row_end = tl.load(bounds + row + 1, mask=row < num_rows, other=0)
        while (row < num_rows) & (row_end <= place):
            number = _put(entries, number, num_entries, begin, position, 0, 1, 1, 1)
            text = (row_end - begin).to(tl.float64)
            highest = tl.maximum(reached, _near(position + text - 1, ROUNDS))
            tl.store(largest + row, tl.where(text > 0, highest, reached))
            row += 1
            begin, position, reached = row_end, position * 0, reached * 0 - 1
            row_end = tl.load(bounds + row + 1, mask=row < num_rows, other=0)
        if place < num_tokens:
            of = tl.load(ids + place)
            is_marked = tl.load(marked + place).to(tl.int64)
            is_heard = ((of != IMAGE) & (of != VIDEO)).to(tl.int64)
            is_image = is_marked * (of == IMAGE).to(tl.int64)
            image = _next_grid(grids, image, num_images, MERGE)
            video = _next_grid(grids, video, num_visuals, MERGE)
            audio = _next_audio(lengths, audio, num_audios, WINDOW)
            visual = tl.where(is_image > 0, image, video)
            most = tl.where(is_image > 0, num_images, num_visuals)
            is_given = (is_marked > 0) & (visual < most)
            frames = tl.load(grids + 3 * visual, mask=is_given, other=0)
            height = tl.load(grids + 3 * visual + 1, mask=is_given, other=0) // MERGE
            width = tl.load(grids + 3 * visual + 2, mask=is_given, other=0) // MERGE
            of_video = is_given & (is_image == 0)
            step = tl.load(seconds + visual - num_images, mask=of_video, other=1.0)
            heard = tl.load(lengths + audio, mask=(is_heard > 0) & (audio < num_audios), other=0)
            heard = _audio_tokens(heard, WINDOW)
            image += is_image
            video += is_marked - is_image
            audio += is_heard
            in_frame = height * width
            area = frames * in_frame

            start = place - is_marked
            lead = 1 + is_marked * is_heard
            if MARKERS == 2:
                lead = lead * 0 + 1
            moved = lead
            if MARKERS == 1:
                moved = lead * 0 + 1
            number = _put(entries, number, num_entries, begin, position, 0, 1, 1, 1)
            mark = _near(position + (start - begin).to(tl.float64), ROUNDS)
            number = _put(entries, number, num_entries, start, mark, 0, 1, 1, 1)
            if MARKERS == 1:
                number = _put(entries, number, num_entries, start + 1, mark, 0, 1, 1, 1)
            block = _near(mark + moved.to(tl.float64), ROUNDS)
            audio_end = _near(block + (heard - 1).to(tl.float64), ROUNDS)
            last = tl.maximum(frames - 1, 0).to(tl.float64)
            last_frame = block + _time(last, step, rate, SECONDS_FIRST, F32, WHOLE)
            last_frame = _near(last_frame, ROUNDS)
            across = (tl.maximum(height, width) - 1).to(tl.float64)
            visual_end = tl.maximum(_near(block + across, ROUNDS), last_frame)
            highest = tl.maximum(visual_end, audio_end)
            end = highest
            if PIECE:
                ends_in_sound = last_frame <= audio_end
                if INTERLEAVE > 0:
                    chunk, previous = zero, zero
                    frame = tl.zeros((), tl.float64)
                    most = in_frame - 1  # a token begins one chunk at most, the first one none
                    for _ in range(frames):
                        time = _time(frame, step, rate, SECONDS_FIRST, F32, WHOLE)
                        current = tl.floor(time / CHUNK).to(tl.int64)
                        if INTERLEAVE == 1:
                            chunk = tl.minimum(current, chunk + most)
                        else:
                            chunk += (current != previous).to(tl.int64)
                        previous, frame, most = current, frame + 1, in_frame
                    ends_in_sound = chunk * CHUNK < heard
                end = tl.where(ends_in_sound, audio_end, visual_end)
            end = _near(tl.where(heard > 0, end, visual_end) + 1, ROUNDS)
            in_frame, width = tl.maximum(in_frame, 1), tl.maximum(width, 1)
            begin = start + lead
            number = _put(entries, number, num_entries, begin, block, area, in_frame, width, step)
            begin += area + heard
            number = _put(entries, number, num_entries, begin, end, 0, 1, 1, 1)
            if MARKERS == 1:
                number = _put(entries, number, num_entries, begin + 1, end, 0, 1, 1, 1)
            begin += lead
            tail = (moved - 1).to(tl.float64)
            position = _near(_near(end + 1, ROUNDS) + tail, ROUNDS)
            reached = tl.maximum(reached, tl.maximum(highest, _near(end + tail, ROUNDS)))
