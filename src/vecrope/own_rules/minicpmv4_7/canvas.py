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

# Numbers of an entry, which is tokens that lie together: how many; their time, row and column; lines,
# and tokens of a line; lines and columns that a thumbnail is spread over, 0 for a slice. A crop has
# the marker in front of it, and most often the one behind it. Other tokens stay where they are if
# they have 0 lines; text, which counts up, has -1.
_NUM_COLUMNS = 8

_SIZE = 8
# Numbers that are kept between calls, at least.
_FEW = 2**12


class CanvasLayout(Layout):
    """A batch under construction, of text and pictures; it has entries in the place of pieces."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__(tokens)
        self.entries: list[int] = []

    def text(self, stop: int) -> None:
        """Add the tokens before `stop`, if any, as text."""
        count, now = stop - self.at, self.now
        if count > 0:
            self.entries += count, now, now, now, -1, 0, 0, 0
            self.now, self.at = now + count, stop

    def positions(self) -> Tensor:
        """Return the positions (3, N) int64 of the unmasked tokens."""
        if not self.entries:
            return torch.empty((3, 0), dtype=torch.int64, device="cpu")
        counts, *starts, heights, widths, talls, wides = _columns(self.entries)
        numbers = upwards(max(_FEW, 1 << max(counts).bit_length()), "q")
        sizes = [_SIZE * count for count in counts]
        flat = [
            numbers[:size] if height < 0 else bytes(size)
            for size, height in zip(sizes, heights, strict=True)
        ]
        down, across = (
            [
                offsets_of(*shape)[:size] if height > 0 else others
                for others, size, height, *shape in zip(flat, sizes, heights, *shapes, strict=True)
            ]
            for offsets_of, *shapes in (
                (_down, heights, widths, talls),
                (_across, widths, heights, wides),
            )
        )
        joined = bytearray().join(chain(flat, down, across))
        positions = torch.frombuffer(joined, dtype=torch.int64).view(3, -1)
        entry = torch.repeat_interleave(_tensor(counts), output_size=positions.shape[1])
        for axis, first in zip(positions, starts, strict=True):
            axis.add_(_tensor(first).index_select(0, entry))
        # What would be before the first position is there.
        return positions.clamp_(min=0)

    def largest(self, first: int) -> int:
        """Return the largest position of the entries from one on."""
        pieces = chain.from_iterable(map(_pieces, *_columns(self.entries[first:])))
        return max(max(*columns, *(rows or ())) for _, rows, columns in pieces)

    def blocks(self) -> list[Block]:
        """Return the unmasked tokens as blocks, none of which goes on into another row."""
        self.pieces = [*chain.from_iterable(map(_pieces, *_columns(self.entries)))]
        return super().blocks()


def _columns(entries: list[int]) -> list[list[int]]:
    return [entries[at::_NUM_COLUMNS] for at in range(_NUM_COLUMNS)]


def _pieces(
    count: int, time: int, top: int, left: int, height: int, width: int, tall: int, wide: int
) -> Iterator[Piece]:
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


def _tensor(numbers: Sequence[int]) -> Tensor:
    return torch.frombuffer(array("q", numbers), dtype=torch.int64)


@lru_cache(maxsize=512)
def _down(height: int, width: int, tall: int) -> bytes:
    """Return the offsets of a crop's tokens and markers in height, as bytes."""
    rows = array("q", spread_over(height, tall)).tobytes()
    lines = (rows[at : at + _SIZE] * width for at in range(_SIZE, _SIZE * height + 1, _SIZE))
    return b"".join((rows[:_SIZE], *lines, rows[-_SIZE:]))


@lru_cache(maxsize=512)
def _across(width: int, height: int, wide: int) -> bytes:
    """Return the same in width."""
    columns = array("q", spread_over(width, wide)).tobytes()
    return columns[:_SIZE] + columns[_SIZE:-_SIZE] * height + columns[-_SIZE:]


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
