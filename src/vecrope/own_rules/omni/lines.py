"""The positions of an omni prompt as lines, along which every axis stands still or counts up."""

from __future__ import annotations

from vecrope.own_rules.omni.entries import Pieces
from vecrope.own_rules.omni.media import float32

# Tokens; the first one's position in time, height and width; by how much each counts up.
Line = tuple[int, float, float, float, tuple[int, int, int]]


def lines_of_entries(pieces: Pieces, *, rounds: bool) -> list[Line]:
    """Return the lines of pieces, in their order; `rounds`: whether positions are float32."""
    near = float32 if rounds else float
    lines: list[Line] = []
    for base, offsets, (first, stop, width), begin, end in zip(*pieces, strict=True):
        rows = [
            (max(first - at, 0), min(stop - at, width), near(base + row))
            for row, at in enumerate(range(0, stop, width or 1))
            if at + width > first
        ]
        for offset in offsets:
            time = near(base + offset)
            lines += [(b - a, time, row, base + a, (0, 0, 1)) for a, b, row in rows]
        # Where the first is rounded, a line that starts there may be rounded otherwise.
        each = end - begin if near(base + begin) == base + begin else 1
        for number in range(begin, end, each or 1):
            head = near(base + number)
            lines.append((each, head, head, head, (1, 1, 1)))
    return lines
