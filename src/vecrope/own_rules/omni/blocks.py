"""An omni prompt as the blocks of a plan: tokens that count up, and frames."""

from __future__ import annotations

from vecrope.own_rules.layout import FRAME, TEXT, Block
from vecrope.own_rules.omni.entries import Pieces
from vecrope.own_rules.omni.media import float32


def blocks_of_entries(pieces: Pieces, *, rounds: bool) -> list[Block]:
    """Return the blocks of pieces, in their order; `rounds`: whether positions are float32."""
    near = float32 if rounds else float
    blocks: list[Block] = []
    for base, offsets, (first, stop, width), begin, end in zip(*pieces, strict=True):
        if stop > first:
            blocks += [
                (stop - first, near(base + offset), base, base, width, first, FRAME)
                for offset in offsets
            ]
        # Where the first is rounded, the others may be rounded otherwise.
        each = end - begin if near(base + begin) == base + begin else 1
        for number in range(begin, end, each or 1):
            head = near(base + number)
            blocks.append((each, head, head, head, 1, 0, TEXT))
    return blocks
