"""The running position of an omni prompt, item by item, on host numbers."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain, pairwise, repeat
from math import ceil, frexp
from operator import mul, ne

from vecrope.families.rules import OmniRule
from vecrope.own_rules.omni.find import Item
from vecrope.own_rules.omni.media import Media, chunk_length, float32
from vecrope.spec import MRopeSpec

# The frames of a picture: their offsets in time; what of each frame stands there, from which of its
# tokens to which, nothing if all of it; how many tokens of the sound come before each that is not
# behind all of them. A frame that the sound cuts is several.
Frames = tuple[Sequence[float], Sequence[tuple[int, int]], Sequence[int]]
# Position that frames, and tokens that count up between and behind them, start from; number in
# `Media.size`, or -1 without; how many tokens count up; the frames, of text one without a token.
Entry = tuple[float, int, int, Frames]
_TEXT: Frames = (0,), (), (0,)


def follow(
    items: Sequence[Item], media: Media, bounds: Sequence[int], spec: MRopeSpec, rule: OmniRule
) -> tuple[list[Entry], list[float]]:
    """Follow the running position from item to item, rounding where the upstream does.

    Args:
        items: in the order of the prompt.
        media: that they are of.
        bounds: (B + 1) where each row of unmasked tokens begins, and the last one ends.
        spec: the family's rules.
        rule: those of its own.

    Returns:
        The entries of all tokens, and the largest position of each row, -1 without a token.
    """
    rounds = spec.position_dtype == "float32"
    early, share = rule.sound_markers == "early", rule.sound_markers == "shared"
    by_time, in_piece = rule.interleave == "merge", rule.sound_end == "piece"
    length = chunk_length(spec, rule)
    near: Callable[[float], float] = float32 if rounds else int
    sizes, heights, widths = media.size, media.height, media.width
    entries: list[Entry] = []
    largest: list[float] = []
    left = zip(items, _offsets([item[3] for item in items], media, spec, rule), strict=True)
    item, offsets = next(left, (None, ()))
    for row, (at, stop) in enumerate(pairwise(bounds)):
        base: float = 0  # of the tokens that count up, and how many these are so far
        tokens = 0
        position: float = 0
        high: float = -1
        limit = 0.0  # the power of two that comes next, once positions are fractions
        while item is not None and item[0] == row:
            _, start, markers, visual, sound = item
            height, width, last = heights[visual], widths[visual], offsets[-1]
            audio, text = sizes[sound], start - at
            side = (height if height > width else width) - 1
            lead = 1 if early else markers
            moved = 1 if share else lead
            mark, block = position + text, position + (text + moved)
            of_visual, of_sound = block + side, block + (audio - 1)
            # Between two powers of two all sums with whole numbers are exact.
            inexact = rounds and position + (text + 6 + side + last + audio) >= limit
            inexact = inexact and (position % 1 or last % 1) > 0
            if inexact:
                mark = float32(mark)
                block = float32(mark + moved)
                of_visual, of_sound = float32(block + side), float32(block + (audio - 1))
            if position != base + tokens:
                entries.append((base, -1, tokens, _TEXT))
                base, tokens = position, 0
            tokens += text
            if mark != base + tokens:
                entries.append((base, -1, tokens, _TEXT))
                base, tokens = mark, 0
            entries.append((base, -1, tokens + moved, _TEXT))
            if moved != lead:
                entries.append((mark, -1, 1, _TEXT))
            frames: Frames = offsets, (), ()
            if visual < 0:
                frames = _TEXT
            elif audio and by_time:
                frames = offsets, (), _begins_by_time(offsets, block, audio, near)
            elif audio:
                frames = _in_chunks(offsets, height * width, length, audio, rule)
            entries.append((block, visual, audio, frames))
            last = near(block + last)
            of_visual = last if last > of_visual else of_visual
            end = of_visual if of_visual > of_sound else of_sound
            high = end if end > high else high
            if in_piece:
                # A block ends in its sound, or in a frame if all of the sound comes before that.
                end = of_visual if len(frames[2]) < len(frames[0]) else of_sound
            base, tokens = end + 1, moved
            position = base + moved
            if inexact:
                base = float32(base)
                position = float32(float32(base + 1) + (moved - 1))
                limit = 2.0 ** frexp(position)[1]
            if moved != lead:
                entries.append((base, -1, 1, _TEXT))
            at = start + 2 * lead + sizes[visual] + audio
            item, offsets = next(left, (None, ()))
        if stop > at and position != base + tokens:
            entries.append((base, -1, tokens, _TEXT))
            base, tokens = position, 0
        tokens += stop - at
        if tokens:
            entries.append((base, -1, tokens, _TEXT))
            base += tokens - 1
            high = max(high, float32(base) if rounds else base)
        largest.append(high)
    return entries, largest


def _offsets(
    visuals: Sequence[int], media: Media, spec: MRopeSpec, rule: OmniRule
) -> list[Sequence[float]]:
    """Return the offsets in time of the frames of visuals; text and audio have a frame, too.

    Each product is rounded as the upstream rounds it, those of all visuals at once.
    """
    code = "f" if spec.time_dtype == "float32" else "d"
    depth = [*map(media.depth.__getitem__, visuals)]
    # The product of two float32 is exact in double precision.
    (rate,) = array(code, [spec.tokens_per_second or 0])
    steps: Iterable[float] = map(media.seconds.__getitem__, visuals)
    if spec.time_order != "seconds":
        steps = array(code, map(mul, steps, repeat(rate)))
    frames = chain.from_iterable(map(range, depth))
    times: Sequence[float] = array(
        code, map(mul, frames, chain.from_iterable(map(repeat, steps, depth)))
    )
    if spec.time_order == "seconds":
        times = array(code, map(mul, times, repeat(rate)))
    if rule.whole_times:
        times = [*map(int, times)]
    return [times[end - number : end] for number, end in zip(depth, accumulate(depth), strict=True)]


def _begins_by_time(
    offsets: Sequence[float], base: float, audio: int, near: Callable[[float], float]
) -> list[int]:
    """Return how many of the tokens of a sound come before each frame: those of earlier times."""
    begins = []
    is_exact = near(base + audio) == base + audio
    for offset in offsets:
        time = near(base + offset)
        begin = ceil(time - base)
        if not is_exact and near(base + (begin - 1)) == time:
            begin -= 1  # a token of the sound that is rounded up joins the frame
        if begin >= audio:
            break
        begins.append(begin)
    return begins


def _in_chunks(
    offsets: Sequence[float], in_frame: int, length: int, audio: int, rule: OmniRule
) -> Frames:
    """Cut the frames of a video where a chunk of its sound stands before one of their tokens."""
    chunks = [int(offset // length) for offset in offsets]
    if rule.interleave == "count":
        begun: list[int] = [*map(ne, chunks, [0, *chunks])]
    else:
        # Each token begins one chunk at most.
        reached = accumulate([0, *chunks], lambda chunk, latest: min(chunk + in_frame, latest))
        begun = [latest - chunk for chunk, latest in pairwise(reached)]
    heard = accumulate(chain.from_iterable([1] * number or [0] for number in begun))
    begins = [*map(mul, heard, repeat(length))]
    begins = begins[: bisect_left(begins, audio)]
    if max(begun) <= 1:
        return offsets, (), begins
    parts = [number or 1 for number in begun]
    firsts = [*chain.from_iterable(map(range, parts))]
    cells = [(a, a + 1 if b else in_frame) for a, b in pairwise([*firsts, 0])]
    return [*chain.from_iterable(map(repeat, offsets, parts))], cells, begins
