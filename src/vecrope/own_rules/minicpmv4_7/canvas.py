"""Canvases of pictures laid out on the host, and their positions as bytes.

A position is the sum of where a crop lies and of an offset, which crops of one size share.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat
from operator import add, mul
from struct import Struct

import torch
from torch import Tensor

from vecrope.core.search import spread
from vecrope.own_rules.common import Tokens
from vecrope.own_rules.layout import Block, Layout, Piece, upwards

# Numbers of an entry, a crop with what is around it: tokens of text, and the position of their
# first; position in time, row and column of the crop; its lines, and tokens of a line; lines and
# columns that a thumbnail is spread over, 0 for a slice; 1 if a marker is behind it, besides the
# one in front; tokens behind that, and their row and column. The end of a row has text alone.
_NUM_COLUMNS = 13
# Of text, crop and tokens behind it, which column says where they start on each axis.
_STARTS = [[1, 2, 2], [1, 3, 11], [1, 4, 12]]

_SIZE, _pack = 8, Struct("q").pack
_ZERO = bytes(_SIZE)
# Numbers that are kept between calls, at least, and tokens of crops whose offsets are, at most.
_FEW = 2**12


class CanvasLayout(Layout):
    """A batch under construction, of text and pictures; it has entries in the place of pieces."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__(tokens)
        self.entries: list[int] = []

    def text(self, stop: int) -> None:
        """Add the tokens before `stop`, if any, as text."""
        if stop > self.at:
            self.entries += (stop - self.at, self.now, *repeat(0, _NUM_COLUMNS - 2))
            self.now, self.at = self.now + stop - self.at, stop

    def positions(self) -> Tensor:
        """Return the positions (3, N) int64 of the unmasked tokens."""
        if not self.entries:
            return torch.empty((3, 0), dtype=torch.int64, device="cpu")
        texts, *_, heights, widths, talls, wides, behind, rests, _, _ = _columns(self.entries)
        areas = [*map(mul, heights, widths)]
        kept = max(areas) <= _FEW
        down, across = (of if kept else of.__wrapped__ for of in (_down, _across))
        numbers = upwards(max(_FEW, 1 << max(texts).bit_length()), "q")
        upto = [numbers[: _SIZE * count] for count in texts]
        still = [*map(mul, repeat(_ZERO), rests)]
        counts = [area and area + 1 + marker for area, marker in zip(areas, behind, strict=True)]
        crops = (
            map(mul, repeat(_ZERO), counts),
            map(down, heights, widths, talls, behind),
            map(across, heights, widths, wides, behind),
        )
        parts = chain.from_iterable(zip(upto, of_axis, still, strict=True) for of_axis in crops)
        joined = bytearray().join(chain.from_iterable(parts))
        positions = torch.frombuffer(joined, dtype=torch.int64).view(3, -1)
        table = _tensor(self.entries).view(-1, _NUM_COLUMNS)
        of_parts = torch.stack((table[:, 0], _tensor(counts), table[:, 10]), 1).view(-1)
        part = spread(of_parts, positions.shape[1])
        starts = table[:, _STARTS].permute(1, 0, 2).reshape(3, -1)
        for axis, start in zip(positions, starts, strict=True):
            axis.add_(start.index_select(0, part))
        # What would be before the first position is there.
        return positions.clamp_(min=0)

    def largest(self, first: int) -> int:
        """Return the largest position of the entries from one on."""
        pieces = chain.from_iterable(map(_pieces, *_columns(self.entries[first:])))
        return max(max(chain(columns, rows or ())) for _, rows, columns in pieces)

    def blocks(self) -> list[Block]:
        """Return the unmasked tokens as blocks, none of which goes on into another row."""
        self.pieces = [*chain.from_iterable(map(_pieces, *_columns(self.entries)))]
        return super().blocks()


def _columns(entries: Sequence[int]) -> list[Sequence[int]]:
    return [entries[at::_NUM_COLUMNS] for at in range(_NUM_COLUMNS)]


def _pieces(text: int, at: int, *crop: int) -> Iterator[Piece]:
    now, top, left, height, width, tall, wide, behind, rest, row, column = crop
    if text:
        yield at, None, range(at, at + text)
    if height:
        rows, columns = spread_over(height, tall), spread_over(width, wide)
        yield now, (max(top + rows[0], 0),), (max(left + columns[0], 0),)
        if not tall or (height, width) == (tall, wide):
            yield now, range(top, top + height), range(left, left + width)
        else:
            yield (
                now,
                [*map(add, repeat(top), rows[1:-1])],
                [*map(add, repeat(left), columns[1:-1])],
            )
        if behind:
            yield now, (top + rows[-1],), (left + columns[-1],)
    if rest:
        yield now, (row,), (column,) * rest


def _tensor(numbers: Sequence[int]) -> Tensor:
    return torch.frombuffer(array("q", numbers), dtype=torch.int64)


@lru_cache(maxsize=1024)
def _down(height: int, width: int, tall: int, behind: int) -> bytes:
    """Return the offsets of a crop and its markers in height, as bytes."""
    if not height:
        return b""
    first, *rows, last = map(_pack, spread_over(height, tall))
    return b"".join((first, *map(mul, rows, repeat(width)), last * behind))


@lru_cache(maxsize=1024)
def _across(height: int, width: int, wide: int, behind: int) -> bytes:
    """Return the same in width."""
    if not height:
        return b""
    columns = array("q", spread_over(width, wide)).tobytes()
    return columns[:_SIZE] + columns[_SIZE:-_SIZE] * height + columns[-_SIZE:] * behind


@lru_cache(maxsize=1024)
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
    # Bit for bit as float32 gives it on a CPU: multiples of the rounded step from the nearer end.
    last, half = extent - 1, count // 2 or 1
    (step,) = array("f", (last / (count - 1 or 1),))
    from_start = array("f", [step * index for index in range(half)])
    from_end = array("f", [step * index for index in range(half + 1 - count, 1)])
    from_end = array("f", [way + last for way in from_end])
    return -1, *map(round, from_start), *map(round, from_end), extent
