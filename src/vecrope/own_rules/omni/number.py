"""The positions of an omni prompt whose items are known on the host.

The running position goes from item to item on host numbers. What stands between two changes of the
rule is an entry: tokens along which all axes count up (text, markers, audio), or a block of frames,
with or without sound.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, chain, pairwise, repeat
from math import ceil, frexp
from operator import add, mul, sub

from vecrope.families.rules import OmniRule
from vecrope.own_rules.omni.entries import Cut, Entry
from vecrope.own_rules.omni.find import Item
from vecrope.own_rules.omni.media import Media, chunk_length, float32
from vecrope.spec import MRopeSpec


def follow(
    items: list[Item], media: Media, bounds: list[int], spec: MRopeSpec, rule: OmniRule
) -> tuple[list[Entry], list[float]]:
    """Follow the running position from item to item, rounding where the upstream does.

    Args:
        items: in the order of the prompt.
        media: that they are of.
        bounds: (B + 1) where each row of unmasked tokens begins, and the last one ends.
        spec: the family's rules.
        rule: likewise.

    Returns:
        The entries of all tokens, and the largest position of each row, -1 without a token.
    """
    rounds = spec.position_dtype == "float32"
    early, share = rule.sound_markers == "early", rule.sound_markers == "shared"
    near_time = float32 if rounds else _same
    by_time, length = rule.interleave == "merge", chunk_length(spec, rule)
    sides = [*map(max, media.height, media.width)]
    all_offsets = _frame_times([item[3] for item in items if item[3] >= 0], media, spec, rule)
    entries: list[Entry] = []
    largest: list[float] = []
    base: float = 0
    tokens = number = 0

    def count_up(start: float, more: int) -> None:
        """Add tokens to those that count up, if they go on from there; -1 ends those."""
        nonlocal base, tokens
        if start == base + tokens:
            tokens += more
            return
        if tokens:
            entries.append((base, 0, 0, (), ((0, tokens),)))
        base, tokens = start, more

    for row, (at, stop) in enumerate(pairwise(bounds)):
        position: float = 0
        reached = -1.0
        while number < len(items) and items[number][0] == row:
            _, start, markers, visual, sound = items[number]
            number += 1
            audio = 0 if sound < 0 else media.audio[sound]
            side = 0 if visual < 0 else sides[visual]
            shared = share and markers == 2
            lead = 1 if early else markers
            moved = 1 if shared else lead
            text = start - at
            near = _rounding(rounds, position, position + (text + 2 + max(side, audio)))
            mark = near(position + text)
            count_up(position, text)
            count_up(mark, moved)
            if shared:
                count_up(mark, 1)
            block = near(mark + moved)
            highest = end = near(block + (audio - 1))
            area = 0
            if visual < 0:
                count_up(block, audio)
            else:
                offsets = next(all_offsets)
                visual_end = max(near(block + (side - 1)), near_time(block + offsets[-1]))
                highest = max(visual_end, end)
                height, width, area = media.height[visual], media.width[visual], media.area[visual]
                cuts: list[Cut] = []
                if audio and by_time:
                    cuts = _cuts_by_time(block, offsets, height * width, audio, near, rounds=rounds)
                elif audio:
                    walk = rule.interleave == "walk"
                    cuts = _cuts_by_chunk(offsets, height * width, audio, length, walk=walk)
                # A block ends in its sound, or in a frame if all of the sound comes before that.
                if not audio or (rule.sound_end == "piece" and cuts and cuts[-1][1] == audio):
                    end = visual_end
                elif rule.sound_end == "block":
                    end = highest
                cuts.append((area, audio))
                count_up(-1, 0)
                entries.append((block, height, width, offsets, cuts))
                near = _rounding(rounds, end, end + 4)
            end = near(end + 1)
            count_up(end, moved)
            if shared:
                count_up(end, 1)
            position = near(near(end + 1) + (moved - 1))
            reached = max(reached, highest, near(end + (moved - 1)))
            at = start + 2 * lead + area + audio
        if stop > at:
            near = _rounding(rounds, position, position + (stop - at))
            count_up(position, stop - at)
            reached = max(reached, near(position + (stop - at - 1)))
        largest.append(reached)
    count_up(-1, 0)
    return entries, largest


def _rounding(rounds: bool, low: float, high: float) -> Callable[[float], float]:
    """Return what rounds the sums of `low` and whole numbers, up to `high`."""
    exact = not rounds or not low % 1 or frexp(low)[1] == frexp(high)[1]
    return _same if exact else float32


def _same(value: float) -> float:
    return value


def _frame_times(
    visuals: Sequence[int], media: Media, spec: MRopeSpec, rule: OmniRule
) -> Iterator[Sequence[float]]:
    """Yield the temporal offsets of each visual's frames.

    Each product is rounded as the upstream rounds it, those of all visuals at once.
    """
    # The product of two float32 is exact in double precision.
    rounded = partial(array, "f" if spec.time_dtype == "float32" else "d")
    rate = rounded((spec.tokens_per_second,))[0]
    depth = [*map(media.depth.__getitem__, visuals)]
    steps: Iterable[float] = map(media.seconds.__getitem__, visuals)
    if spec.time_order != "seconds":
        steps = rounded(map(mul, steps, repeat(rate)))
    frames = chain.from_iterable(map(range, depth))
    times = rounded(map(mul, frames, chain.from_iterable(map(repeat, steps, depth))))
    if spec.time_order == "seconds":
        times = rounded(map(mul, times, repeat(rate)))
    offsets = [*map(int, times)] if rule.whole_times else times
    ends = [*accumulate(depth, initial=0)]
    return map(offsets.__getitem__, map(slice, ends, ends[1:]))


# The cuts are those of `Entry`, but for the block's end, from the block's base, the offsets of its
# frames in time, tokens of a frame, and tokens of the sound, whose positions `near` rounds.


def _cuts_by_time(
    block: float,
    offsets: Sequence[float],
    in_frame: int,
    audio: int,
    near: Callable[[float], float],
    *,
    rounds: bool,
) -> list[Cut]:
    times: Sequence[float] = [*map(add, repeat(block), offsets)]
    if rounds:
        times = array("f", times)
    before = [*map(ceil, map(sub, times, repeat(block)))]
    if near is not _same:
        # Rounding moves a token of the sound by less than one: it may join the frame.
        before = [
            count - (near(block + (count - 1)) == time)
            for count, time in zip(before, times, strict=True)
        ]
    starts = map(mul, range(len(times)), repeat(in_frame))
    return [*zip(starts, map(min, before, repeat(audio)), strict=True)]


def _cuts_by_chunk(
    offsets: Sequence[float], in_frame: int, audio: int, length: int, *, walk: bool
) -> list[Cut]:
    cuts: list[Cut] = []
    chunk = previous = 0
    for frame, offset in enumerate(offsets):
        current = int(offset // length)
        begun = current - chunk if walk else int(current > previous)
        previous = current
        # Each token begins one chunk at most.
        for token in range(min(begun, in_frame)):
            chunk += 1
            cuts.append((frame * in_frame + token, min(chunk * length, audio)))
            if chunk * length >= audio:
                return cuts
    return cuts
