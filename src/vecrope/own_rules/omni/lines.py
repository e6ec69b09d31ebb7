"""The positions of an omni prompt as lines, along which every axis stands still or counts up."""

from __future__ import annotations

from collections.abc import Sequence

from vecrope.own_rules.omni.entries import Entry
from vecrope.own_rules.omni.media import float32

# Tokens; the first one's position in time, height and width; by how much each counts up.
Line = tuple[int, float, float, float, tuple[int, int, int]]
_ALL, _ACROSS = (1, 1, 1), (0, 0, 1)


def lines_of_entries(entries: Sequence[Entry], *, rounds: bool) -> list[Line]:
    """Return the lines of entries, in their order.

    Args:
        entries: as `follow` returns them.
        rounds: whether positions are float32.
    """
    near = float32 if rounds else float
    lines: list[Line] = []
    for base, height, width, offsets, cuts in entries:
        seen = heard = 0
        rows = [near(base + row) for row in range(height)]
        times = [near(base + offset) for offset in offsets]
        for of_frames, of_sound in cuts:
            for row in range(seen // (width or 1), -(-of_frames // (width or 1))):
                first, stop = max(seen, row * width), min(of_frames, (row + 1) * width)
                column, down = base + (first - row * width), rows[row % height]
                lines.append((stop - first, times[row // height], down, column, _ACROSS))
            heads, each = [base + heard], of_sound - heard
            if near(base + heard) != base + heard:
                # It is rounded, so that a line that starts here may be rounded otherwise.
                heads, each = [near(base + number) for number in range(heard, of_sound)], 1
            if of_sound > heard:
                lines += [(each, head, head, head, _ALL) for head in heads]
            seen, heard = of_frames, of_sound
    return lines
