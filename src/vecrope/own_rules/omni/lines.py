"""The positions of an omni prompt as lines, along which every axis stands still or counts up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vecrope.own_rules.omni.entries import Entry
from vecrope.own_rules.omni.media import Traits, float32

# Tokens; the first one's position in time, height and width; by how much each counts up.
Line = tuple[int, float, float, float, tuple[int, int, int]]
_ALL, _DOWN, _ACROSS = (1, 1, 1), (0, 1, 0), (0, 0, 1)


def lines_of_entries(entries: Sequence[Entry], traits: Traits) -> list[Line]:
    """Return the lines of entries, in their order.

    Args:
        entries: as `follow` returns them.
        traits: of the family.
    """
    near = float32 if traits.position_dtype == "float32" else float
    lines: list[Line] = []
    for base, tokens, height, width, times, cuts in entries:
        if not height:
            lines.append((tokens, base, base, base, _ALL))
            continue
        if width == 1:
            frames: Iterable[Line] = [(height, time, base, base, _DOWN) for time in times]
        else:
            rows = [near(base + row) for row in range(height)]
            frames = [(width, time, row, base, _ACROSS) for time in times for row in rows]
        if not cuts:
            lines += frames
            continue
        left = iter(frames)
        rest: Line | None = None
        seen = heard = 0
        for of_frames, of_sound in cuts:
            rest = _take(of_frames - seen, rest, left, lines)
            start = base + heard
            sound = [(of_sound - heard, start, start, start, _ALL)]
            if near(start) != start:
                # It is rounded, so that a line that starts here may be rounded otherwise.
                heads = [near(base + number) for number in range(heard, of_sound)]
                sound = [(1, head, head, head, _ALL) for head in heads]
            lines += sound if of_sound > heard else []
            seen, heard = of_frames, of_sound
    return lines


def _take(tokens: int, rest: Line | None, left: Iterator[Line], lines: list[Line]) -> Line | None:
    """Add lines of so many tokens, first of all what was cut off; return what is cut off now."""
    while tokens:
        size, time, row, column, slopes = rest or next(left)
        taken = min(size, tokens)
        lines.append((taken, time, row, column, slopes))
        tokens -= taken
        rest = None
        if size > taken:
            rest = (
                size - taken,
                time,
                row + slopes[1] * taken,
                column + slopes[2] * taken,
                slopes,
            )
    return rest
