"""Canvases of pictures laid out on the host, and their positions as bytes.

A position is the sum of that of an entry and of an offset, which entries of one size share.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor

from vecrope.own_rules.common import Tokens
from vecrope.own_rules.layout import Block, Layout, Piece, upwards

# Tokens that lie together: how many; their time, row and column; lines, and tokens of a line; lines
# and columns that a thumbnail is spread over, 0 for a slice. A crop has the marker in front of it,
# and most often the one behind it. Other tokens stay where they are if they have 0 lines; text,
# which counts up, has -1.
Entry = tuple[int, int, int, int, int, int, int, int]

_SIZE = 8
# Numbers that are kept between calls, at least.
_FEW = 2**12


class CanvasLayout(Layout):
    """A batch under construction, of text and pictures; it has entries in the place of pieces."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__(tokens)
        self.entries: list[Entry] = []

    def text(self, stop: int) -> None:
        """Add the tokens before `stop`, if any, as text."""
        count, now = stop - self.at, self.now
        if count > 0:
            self.entries.append((count, now, now, now, -1, 0, 0, 0))
            self.now, self.at = now + count, stop

    def positions(self) -> Tensor:
        """Return the positions (3, N) int64 of the unmasked tokens."""
        if not self.entries:
            return torch.empty((3, 0), dtype=torch.int64, device="cpu")
        counts, *bases = [*zip(*self.entries, strict=True)][:4]
        numbers = upwards(max(_FEW, 1 << max(counts).bit_length()), "q")
        in_time: list[bytes] = []
        in_height: list[bytes] = []
        in_width: list[bytes] = []
        for count, _, _, _, height, width, tall, wide in self.entries:
            size = _SIZE * count
            if height > 0:
                in_time.append(bytes(size))
                down, across = _offsets_of(height, width, tall, wide)
                in_height.append(down[:size])
                in_width.append(across[:size])
                continue
            offsets = numbers[:size] if height else bytes(size)
            in_time.append(offsets)
            in_height.append(offsets)
            in_width.append(offsets)
        joined = bytearray().join(chain(in_time, in_height, in_width))
        positions = torch.frombuffer(joined, dtype=torch.int64).view(3, -1)
        starts = torch.tensor(bases, device="cpu")
        repeats = torch.tensor(counts, device="cpu")
        starts = starts.repeat_interleave(repeats, 1, output_size=positions.shape[1])
        # What would be before the first position is there.
        return positions.add_(starts).clamp_(min=0)

    def largest(self, first: int) -> int:
        """Return the largest position of the entries from one on."""
        pieces = chain.from_iterable(map(_pieces, self.entries[first:]))
        return max(max(*columns, *(rows or ())) for _, rows, columns in pieces)

    def blocks(self) -> list[Block]:
        """Return the unmasked tokens as blocks, none of which goes on into another row."""
        self.pieces = [*chain.from_iterable(map(_pieces, self.entries))]
        return super().blocks()


def _pieces(entry: Entry) -> Iterator[Piece]:
    count, time, top, left, height, width, tall, wide = entry
    if height < 0:
        yield time, None, range(time, time + count)
    elif not height:
        yield time, (top,), (left,) * count
    else:
        rows, columns = spread_over(height, tall), spread_over(width, wide)
        yield time, (max(top + rows[0], 0),), (max(left + columns[0], 0),)
        if not tall or (height, width) == (tall, wide):
            yield time, range(top, top + height), range(left, left + width)
        else:
            yield time, [top + row for row in rows[1:-1]], [left + at for at in columns[1:-1]]
        if count > height * width + 1:
            yield time, (top + rows[-1],), (left + columns[-1],)


@lru_cache(maxsize=256)
def _offsets_of(height: int, width: int, tall: int, wide: int) -> tuple[bytes, bytes]:
    """Return the offsets of a crop's tokens and markers, in height and in width."""
    rows, columns = (
        array("q", spread_over(*side)).tobytes() for side in ((height, tall), (width, wide))
    )
    lines = (rows[at : at + _SIZE] * width for at in range(_SIZE, _SIZE * height + 1, _SIZE))
    down = b"".join((rows[:_SIZE], *lines, rows[-_SIZE:]))
    return down, columns[:_SIZE] + columns[_SIZE:-_SIZE] * height + columns[-_SIZE:]


@lru_cache(maxsize=512)
def spread_over(count: int, extent: int) -> Sequence[int]:
    """Return the offsets of a crop's lines, or columns, between those of its two markers.

    Args:
        count: how many there are.
        extent: over how many a thumbnail is spread, as `torch.linspace(0, extent - 1, count)` is
            when it is rounded; 0 for a slice. Markers are at its corners, of a thumbnail one
            further out.
    """
    if not extent:
        return 0, *range(count), count - 1
    if count == extent:
        return -1, *range(count), count
    half, (step,) = count // 2 or 1, array("f", ((extent - 1) / (count - 1 or 1),))
    from_start = array("f", [step * index for index in range(half)])
    from_end = array("f", [step * index for index in range(half + 1 - count, 1)])
    from_end = array("f", [way + extent - 1 for way in from_end])
    return -1, *map(round, from_start), *map(round, from_end), extent
