"""What a batch holds, laid out on the host: runs of text and blocks of cells, one after the other.

Positions are written from it, and so are the lines of a plan.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from operator import sub
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from vecrope.own_rules.common import Tokens
from vecrope.spec import MRopeSpec

# Text or a frame: position in time; positions of the rows, None for text; those of the columns.
Piece = tuple[int, Sequence[int] | None, Sequence[int]]
# Tokens, the position of the first on each axis, and by how much each axis counts up, 0 or 1.
Line = tuple[Any, ...]

_pack = Struct("q").pack
_SIZE = 8
# Numbers that are kept between calls, at least and at most.
_FEW, _KEPT = 2**12, 2**18


class Layout:
    """The unmasked tokens of a batch under construction, in their order.

    Args:
        tokens: the tokens.
        index_axes: None: the axes are time, height and width. Else they are so many that have the
            index of each token in its row, then width, height and time.

    Attributes:
        ends: of each row, the position that its delta leads to.
        media: in the order of the prompt, the first token of a medium, the one behind its last,
            and its number among the rows of all images, and of all videos behind them; of a video
            whose frames are separate, of each frame.
        largest: the largest position of the row so far, -1 without one.
    """

    def __init__(self, tokens: Tokens, index_axes: int | None = None) -> None:
        self.tokens = tokens
        self.ends: list[int] = []
        self.media: list[tuple[int, int, int]] = []
        self.largest = -1
        self.num_axes = 3 + (index_axes or 0)
        self._index_axes = index_axes
        self._pieces: list[Piece] = []

    def count(self, first: int, tokens: int) -> None:
        """Add tokens of text, which count up from `first` on all axes."""
        if tokens:
            self._pieces.append((first, None, range(first, first + tokens)))
            self.largest = max(self.largest, first + tokens - 1)

    def cells(self, time: int, rows: Sequence[int], columns: Sequence[int]) -> None:
        """Add a frame, line after line: its position in time, those of its rows and columns.

        Neither are descending.
        """
        self._pieces.append((time, rows, columns))
        self.largest = max(self.largest, time, rows[-1], columns[-1])

    def cell(self, time: int, row: int, column: int, tokens: int) -> None:
        """Add tokens, if any, that stand in one cell."""
        if tokens > 0:
            self.cells(time, (row,), (column,) * tokens)

    def end_row(self, end: int | None = None) -> None:
        """End the row; what follows it stands at `end`, or past the row's largest position."""
        self.ends.append(self.largest + 1 if end is None else end)
        self.largest = -1

    def deltas(self, spec: MRopeSpec) -> list[int]:
        """Return the delta of each row."""
        tokens = self.tokens
        bounds = tokens.given_bounds if spec.delta_length == "padded" else tokens.bounds
        return [*map(sub, self.ends, map(sub, bounds[1:], bounds))]

    def positions(self) -> Tensor:
        """Return the positions (A, N) int64 of the unmasked tokens."""
        bounds, pieces = self.tokens.bounds, self._pieces
        if self._index_axes is None:
            return write_pieces(pieces, bounds[-1])
        positions = write_pieces(pieces, bounds[-1]).flip(0)
        if not self._index_axes:
            return positions
        rows: list[Piece] = [(0, None, range(end - at)) for at, end in pairwise(bounds)]
        index = write_pieces(rows, bounds[-1])[:1]
        return torch.cat((index.expand(self._index_axes, -1), positions))

    def lines(self) -> list[Line]:
        """Return the lines of the unmasked tokens, along which each axis counts up or stands."""
        lines: list[Line] = []
        for time, rows, columns in self._pieces:
            if rows is None:
                lines.append((len(columns), time, time, time, (1, 1, 1)))
            else:
                parts = [*_straight(columns)]
                lines += [(size, time, row, *part) for row in rows for size, *part in parts]
        if self._index_axes is None:
            return lines
        bounds, added = self.tokens.bounds, self._index_axes
        starts = accumulate([line[0] for line in lines[:-1]], initial=0)
        index = [start - bounds[bisect_right(bounds, start) - 1] for start in starts]
        return [
            (size, *(at,) * added, *places[::-1], (1,) * added + slopes[::-1])
            for at, (size, *places, slopes) in zip(index, lines, strict=False)
        ]


def _straight(columns: Sequence[int]) -> list[Line]:
    """Return the columns of a line of cells as lines without a row: tokens, column and slopes."""
    if isinstance(columns, range):
        return [(len(columns), columns.start, (0, 0, 1))]
    parts: list[list[int]] = []
    for before, column in pairwise((columns[0] - 2, *columns)):
        step = column - before
        if step <= 1 and (parts[-1][0] == 1 or parts[-1][2] == step):
            parts[-1][0] += 1
            parts[-1][2] = step
        else:
            parts.append([1, column, 0])
    return [(size, column, (0, 0, step)) for size, column, step in parts]


def write_pieces(pieces: Sequence[Piece], num_tokens: int) -> Tensor:
    """Return the positions (3, N) int64 of pieces of N tokens."""
    upwards = _upwards if num_tokens <= _KEPT else _upwards.__wrapped__
    numbers = upwards(max(_FEW, 1 << num_tokens.bit_length()))
    in_time: list[bytes] = []
    in_height: list[bytes] = []
    in_width: list[bytes] = []
    for time, rows, columns in pieces:
        across = b""
        if isinstance(columns, range) and columns.start >= 0:
            across = numbers[_SIZE * columns.start : _SIZE * columns.stop]
        width = len(columns)
        if len(across) != _SIZE * width:
            across = array("q", columns).tobytes()
        if rows is None:
            in_time.append(across)
            in_height.append(across)
        else:
            in_time.append(_pack(time) * (len(rows) * width))
            in_height.append(b"".join([_pack(row) * width for row in rows]))
            across *= len(rows)
        in_width.append(across)
    joined = bytearray().join(chain(in_time, in_height, in_width))
    if not joined:
        return torch.empty((3, 0), dtype=torch.int64, device="cpu")
    return torch.frombuffer(joined, dtype=torch.int64).view(3, -1)


@lru_cache(maxsize=16)
def _upwards(length: int) -> bytes:
    """Return the numbers from 0 to `length - 1` as bytes of int64."""
    return array("q", range(length)).tobytes()
