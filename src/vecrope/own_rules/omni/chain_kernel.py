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
def _next_grid(grids, row, num_rows, MERGE: tl.constexpr):
    """Return the first row from `row` on that describes tokens, or `num_rows`."""
    empty = row < num_rows
    while empty:
        at = grids + 3 * row
        empty = (tl.load(at) < 1) | (tl.load(at + 1) < MERGE) | (tl.load(at + 2) < MERGE)
        row += empty.to(tl.int64)
        empty = empty & (row < num_rows)
    return row


@triton.jit
def _audio_tokens(mel_frames, WINDOW: tl.constexpr):
    if WINDOW == 0:
        tokens = (mel_frames + 1) // 4
    else:
        tokens = (mel_frames % WINDOW + 7) // 8 + mel_frames // WINDOW * 13
    return tl.where(mel_frames > 0, tokens, 0)


@triton.jit
def _next_audio(lengths, row, num_rows, WINDOW: tl.constexpr):
    empty = row < num_rows
    while empty:
        empty = _audio_tokens(tl.load(lengths + row), WINDOW) < 1
        row += empty.to(tl.int64)
        empty = empty & (row < num_rows)
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
def _put(entries, number, num_entries, place, base, frames, in_frame, width, seconds, audio):
    """Write an entry; of several at one place the last counts."""
    at = entries + number
    tl.store(at, place.to(tl.float64))
    tl.store(at + num_entries, base)
    tl.store(at + 2 * num_entries, frames)
    tl.store(at + 3 * num_entries, in_frame)
    tl.store(at + 4 * num_entries, width)
    tl.store(at + 5 * num_entries, seconds)
    tl.store(at + 6 * num_entries, audio)
    return number + 1


@triton.jit
def follow(
    at,
    token,
    marked,
    bounds,
    images,
    videos,
    seconds,
    lengths,
    has_sound,
    rates,
    entries,
    largest,
    needs,
    faults,
    num_items,
    num_rows,
    num_images,
    num_videos,
    num_audios,
    num_flags,
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
    """Write what `vecrope.own_rules.omni.regions.regions` returns, of its arguments."""
    rate = tl.load(rates)
    num_tokens = tl.load(bounds + num_rows)
    zero = tl.zeros((), tl.int64)
    row, number, image, video, audio, begin = zero, zero, zero, zero, zero, zero
    position = tl.zeros((), tl.float64)
    reached = position - 1
    for item in range(num_items + 1):
        is_last = item == num_items
        place = tl.load(at + item, mask=item < num_items, other=num_tokens)
        exists = place < num_tokens
        is_marked = tl.load(marked + item, mask=exists, other=0).to(tl.int64)
        start = tl.where(is_last, num_tokens, place - is_marked)
        row_end = tl.load(bounds + row + 1)
        while (exists | is_last) & (row < num_rows) & ((row_end <= start) | is_last):
            number = _put(entries, number, num_entries, begin, position, 0, 1, 1, 1, 0)
            text = (row_end - begin).to(tl.float64)
            highest = tl.maximum(reached, _near(position + text - 1, ROUNDS))
            tl.store(largest + row, tl.where(text > 0, highest, reached))
            row += 1
            begin, position, reached = row_end, position * 0, reached * 0 - 1
            row_end = tl.load(bounds + row + 1, mask=row < num_rows, other=0)
        if exists:
            of = tl.load(token + item)
            is_seen = (of == IMAGE) | (of == VIDEO)
            is_image = is_marked * (of == IMAGE).to(tl.int64)
            is_video = is_marked - is_image
            is_heard = 1 - is_seen.to(tl.int64)
            image = _next_grid(images, image, num_images, MERGE)
            video = _next_grid(videos, video, num_videos, MERGE)
            audio = _next_audio(lengths, audio, num_audios, WINDOW)
            pictures = images + 3 * image
            clips = videos + 3 * video
            has_picture = (is_image > 0) & (image < num_images)
            has_clip = (is_video > 0) & (video < num_videos)
            has_audio = (is_heard > 0) & (audio < num_audios)
            frames = tl.load(pictures, mask=has_picture, other=0)
            frames += tl.load(clips, mask=has_clip, other=0)
            height = tl.load(pictures + 1, mask=has_picture, other=0)
            height = (height + tl.load(clips + 1, mask=has_clip, other=0)) // MERGE
            width = tl.load(pictures + 2, mask=has_picture, other=0)
            width = (width + tl.load(clips + 2, mask=has_clip, other=0)) // MERGE
            step = tl.load(seconds + video, mask=has_clip, other=1.0)
            heard = _audio_tokens(tl.load(lengths + audio, mask=has_audio, other=0), WINDOW)
            wants_sound = tl.load(has_sound + video, mask=has_clip & (num_flags > 0), other=0).to(
                tl.int64
            )
            is_misplaced = has_clip & (num_flags > 0) & (wants_sound != is_heard)
            image += has_picture.to(tl.int64)
            video += has_clip.to(tl.int64)
            audio += has_audio.to(tl.int64)
            in_frame = height * width
            area = frames * in_frame

            markers = 1 + is_marked * is_heard
            pair = markers == 2
            lead = markers
            if MARKERS == 2:
                lead = tl.where(pair, 1, lead)
            moved = lead
            if MARKERS == 1:
                moved = tl.where(pair, 1, moved)
            number = _put(entries, number, num_entries, begin, position, 0, 1, 1, 1, 0)
            mark = _near(position + (start - begin).to(tl.float64), ROUNDS)
            number = _put(entries, number, num_entries, start, mark, 0, 1, 1, 1, 0)
            if MARKERS == 1:
                second = tl.where(pair, mark, _near(mark + 1, ROUNDS))
                number = _put(entries, number, num_entries, start + 1, second, 0, 1, 1, 1, 0)
            block = _near(mark + moved.to(tl.float64), ROUNDS)
            audio_end = _near(block + (heard - 1).to(tl.float64), ROUNDS)
            last = tl.maximum(frames - 1, 0).to(tl.float64)
            last_time = _time(last, step, rate, SECONDS_FIRST, F32, WHOLE)
            last_frame = _near(block + last_time, ROUNDS)
            across = (tl.maximum(height, width) - 1).to(tl.float64)
            visual_end = tl.maximum(_near(block + across, ROUNDS), last_frame)
            ends_in_sound = last_frame <= audio_end
            if (INTERLEAVE > 0) and PIECE:
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
            end = tl.maximum(visual_end, audio_end)
            highest = tl.where(is_marked > 0, end, audio_end)
            if PIECE:
                end = tl.where(ends_in_sound, audio_end, visual_end)
            end = tl.where(heard > 0, end, visual_end)
            end = _near(tl.where(is_marked > 0, end, audio_end) + 1, ROUNDS)
            frame_tokens = tl.maximum(in_frame, 1).to(tl.float64)
            number = _put(
                entries,
                number,
                num_entries,
                start + lead,
                block,
                area.to(tl.float64),
                frame_tokens,
                tl.maximum(width, 1).to(tl.float64),
                step,
                (heard * is_marked).to(tl.float64),
            )
            begin = start + lead + area + heard
            number = _put(entries, number, num_entries, begin, end, 0, 1, 1, 1, 0)
            if MARKERS == 1:
                second = tl.where(pair, end, _near(end + 1, ROUNDS))
                number = _put(entries, number, num_entries, begin + 1, second, 0, 1, 1, 1, 0)
            begin += lead
            tail = (moved - 1).to(tl.float64)
            position = _near(_near(end + 1, ROUNDS) + tail, ROUNDS)
            reached = tl.maximum(reached, tl.maximum(highest, _near(end + tail, ROUNDS)))

            first = start + markers
            stop = first + area + heard
            following = tl.load(at + item + 1, mask=item + 1 < num_items, other=num_tokens)
            there = tl.load(marked + item + 1, mask=following < num_tokens, other=0).to(tl.int64)
            limit = tl.minimum(row_end, following - there)
            lacks = ((is_marked > 0) & (area == 0)) | ((is_heard > 0) & (heard == 0))
            tl.store(needs + item, first)
            tl.store(needs + num_items + item, stop)
            tl.store(needs + 2 * num_items + item, area * is_image)
            tl.store(needs + 3 * num_items + item, area * is_video)
            tl.store(needs + 4 * num_items + item, heard)
            faulty = lacks | is_misplaced | (stop + markers > limit)
            tl.store(faults + item, faulty.to(tl.int64))
        else:
            if item < num_items:
                tl.store(needs + item, num_tokens)
                tl.store(needs + num_items + item, num_tokens)
                for column in range(2, 5):
                    tl.store(needs + column * num_items + item, 0)
                tl.store(faults + item, 0)
    image = _next_grid(images, image, num_images, MERGE)
    video = _next_grid(videos, video, num_videos, MERGE)
    audio = _next_audio(lengths, audio, num_audios, WINDOW)
    left = (image < num_images) | (video < num_videos) | (audio < num_audios)
    tl.store(faults + num_items, left.to(tl.int64))
    while number < num_entries:
        number = _put(entries, number, num_entries, num_tokens, position * 0, 0, 1, 1, 1, 0)
