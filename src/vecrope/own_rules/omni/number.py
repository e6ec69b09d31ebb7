"""The running position of an omni prompt, item by item, on host numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import frexp

from vecrope.families.rules import OmniRule
from vecrope.own_rules.omni.find import Item
from vecrope.own_rules.omni.media import Media, chunk_length, float32
from vecrope.spec import MRopeSpec

# Position that frames, and tokens that count up between and behind them, start from; number in
# `Media.area`, or -1, which has one frame without a token; how many tokens count up.
Entry = tuple[float, int, int]


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
    sides = [max(size) - 1 for size in zip(media.height, media.width, strict=True)]
    near_time = float32 if rounds else _same
    areas, audios, all_offsets = media.area, media.audio, media.offsets
    entries: list[Entry] = []
    largest: list[float] = []
    left = iter(items)
    item = next(left, None)
    for row, (at, stop) in enumerate(pairwise(bounds)):
        base: float = 0  # of the tokens that count up, and how many these are so far
        tokens = 0
        position: float = 0
        high: float = -1
        limit = 0.0  # the power of two that comes next, once positions are fractions
        while item is not None and item[0] == row:
            _, start, markers, visual, sound = item
            item = next(left, None)
            audio = audios[sound] if sound >= 0 else 0
            last, side, text = all_offsets[visual][-1], sides[visual], start - at
            near = _same
            if position + (text + 6 + side + last + audio) >= limit and rounds:
                # Between two powers of two all sums with whole numbers are exact.
                near = float32 if position % 1 or last % 1 else _same
            lead = 1 if early else markers
            moved = 1 if share else lead
            if position != base + tokens:
                entries.append((base, -1, tokens))
                base, tokens = position, 0
            tokens += text
            mark = near(position + text)
            if mark != base + tokens:
                entries.append((base, -1, tokens))
                base, tokens = mark, 0
            entries.append((base, -1, tokens + moved))
            if moved != lead:
                entries.append((mark, -1, 1))
            block = near(mark + moved)
            entries.append((block, visual, audio))
            last = near_time(block + last)
            of_visual, end = max(near(block + side), last), near(block + (audio - 1))
            highest = of_visual if of_visual > end else end
            # A block ends in its sound, or in a frame if all of the sound comes before that.
            if not in_piece:
                end = highest
            elif by_time:
                end = end if last <= end else of_visual
            elif audio <= length * sum(media.begun[visual]):
                end = of_visual
            high = highest if highest > high else high
            base, tokens = near(end + 1), moved
            if moved != lead:
                entries.append((base, -1, 1))
            position = near(near(base + 1) + (moved - 1))
            if near is float32:
                limit = 2.0 ** frexp(position)[1]
            at = start + 2 * lead + areas[visual] + audio
        if stop > at and position != base + tokens:
            entries.append((base, -1, tokens))
            base, tokens = position, 0
        tokens += stop - at
        if tokens:
            entries.append((base, -1, tokens))
            base += tokens - 1
            high = max(high, float32(base) if rounds else base)
        largest.append(high)
    return entries, largest


def _same(value: float) -> float:
    return value
