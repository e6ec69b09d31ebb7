"""The positions of an omni prompt whose items are known on the host.

The running position goes from item to item on host numbers. What stands between two changes of the
rule is an entry: tokens along which all axes count up (text, markers, audio), or a block of frames,
with or without sound.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise, repeat
from math import ceil, frexp
from operator import add, mul, sub

from vecrope.own_rules.omni.entries import Cut, Entry
from vecrope.own_rules.omni.find import Item
from vecrope.own_rules.omni.media import Media, Traits, float32, frame_times


def follow(
    items: list[Item], media: Media, bounds: list[int], traits: Traits
) -> tuple[list[Entry], list[float]]:
    """Follow the running position from item to item, rounding where the upstream does.

    Args:
        items: in the order of the prompt.
        media: that they are of.
        bounds: (B + 1) where each row of unmasked tokens begins, and the last one ends.
        traits: of the family.

    Returns:
        The entries of all tokens, and the largest position of each row, -1 without a token.
    """
    rounds = traits.position_dtype == "float32"
    early, share = traits.sound_markers == "early", traits.sound_markers == "shared"
    sides = [*map(max, media.height, media.width)]
    all_offsets = frame_times([item[3] for item in items if item[3] >= 0], media, traits)
    entries: list[Entry] = []
    largest: list[float] = []
    base: float = 0
    tokens = number = 0

    def count_up(start: float, more: int) -> None:
        """Add tokens to those that count up, if they go on from there."""
        nonlocal base, tokens
        if start == base + tokens:
            tokens += more
            return
        if tokens:
            entries.append((base, tokens, 0, 0, (), ()))
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
            if mark == position + text:
                count_up(position, text + moved)
            else:
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
                times: Sequence[float] = (block,)
                if len(offsets) > 1:
                    times = [*map(add, repeat(block), offsets)]
                    if rounds:
                        times = array("f", times)
                visual_end = max(near(block + (side - 1)), times[-1])
                highest = max(visual_end, end)
                height, width, area = media.height[visual], media.width[visual], media.area[visual]
                cuts: list[Cut] = []
                if audio:
                    cuts = _cuts(block, times, offsets, height * width, audio, near, traits)
                # A block ends in its sound, or in a frame if all of the sound comes before that.
                if not audio or (traits.sound_end == "piece" and cuts and cuts[-1][1] == audio):
                    end = visual_end
                elif traits.sound_end == "block":
                    end = highest
                if audio:
                    cuts.append((area, audio))
                if tokens:
                    entries.append((base, tokens, 0, 0, (), ()))
                    base, tokens = -1, 0
                entries.append((block, area + audio, height, width, times, cuts))
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


def _cuts(
    block: float,
    times: Sequence[float],
    offsets: Sequence[float],
    in_frame: int,
    audio: int,
    near: Callable[[float], float],
    traits: Traits,
) -> list[Cut]:
    """Return the cuts of a block, as `Entry` has them, but for its end.

    Args:
        block: the block's base.
        times: positions of the frames in time.
        offsets: the same, counted from the base.
        in_frame: tokens of a frame.
        audio: tokens of the sound.
        near: what rounds the positions of the sound; `_same` where they are exact.
        traits: of the family.
    """
    if traits.interleave == "merge":
        before = [*map(ceil, map(sub, times, repeat(block)))]
        if near is not _same:
            # Rounding moves a token of the sound by less than one: it may join the frame.
            before = [
                count - (near(block + (count - 1)) == time)
                for count, time in zip(before, times, strict=True)
            ]
        starts = map(mul, range(len(times)), repeat(in_frame))
        return [*zip(starts, map(min, before, repeat(audio)), strict=True)]
    cuts: list[Cut] = []
    length, chunk, previous = traits.chunk_length, 0, 0
    for frame, offset in enumerate(offsets):
        current = int(offset // length)
        begun = current - chunk if traits.interleave == "walk" else int(current > previous)
        previous = current
        # Each token begins one chunk at most.
        for token in range(min(begun, in_frame)):
            chunk += 1
            cuts.append((frame * in_frame + token, min(chunk * length, audio)))
            if chunk * length >= audio:
                return cuts
    return cuts
