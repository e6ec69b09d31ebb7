"""An omni prompt as the blocks of a plan: tokens that count up, and frames."""

from __future__ import annotations

from collections.abc import Sequence

from vecrope.own_rules.layout import FRAME, TEXT, Block
from vecrope.own_rules.omni.entries import Entry
from vecrope.own_rules.omni.media import float32


def blocks_of_entries(entries: Sequence[Entry], *, rounds: bool) -> list[Block]:
    """Return the blocks of entries, in their order.

    Args:
        entries: as `follow` returns them.
        rounds: whether positions are float32.
    """
    near = float32 if rounds else float
    blocks: list[Block] = []
    for base, height, width, offsets, cuts in entries:
        seen = heard = 0
        area = height * width
        for of_frames, of_sound in cuts:
            for frame in range(seen // (area or 1), -(-of_frames // (area or 1))):
                first = max(seen - frame * area, 0)
                tokens = min(of_frames - frame * area, area) - first
                time = near(base + offsets[frame])
                blocks.append((tokens, time, base, base, width, first, FRAME))
            # Where the first is rounded, the others may be rounded otherwise.
            each = of_sound - heard if near(base + heard) == base + heard else 1
            for number in range(heard, of_sound, each or 1):
                head = near(base + number)
                blocks.append((each, head, head, head, 1, 0, TEXT))
            seen, heard = of_frames, of_sound
    return blocks
