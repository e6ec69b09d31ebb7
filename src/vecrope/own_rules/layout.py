"""What a batch holds, laid out on the host: runs of text and blocks of cells, one after the other.

Positions are written from it, and so are the blocks of a plan.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain, pairwise, repeat
from operator import mul, sub
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from vecrope.own_rules.common import Tokens
from vecrope.spec import MRopeSpec

# Text or a frame: position in time; positions of the rows, None for text; those of the columns.
Piece = tuple[int, Sequence[int] | None, Sequence[int]]
# How an axis counts in a block of lines: not at all, by the lines, by the tokens of a line, or by
# all tokens, as every axis of text does.
STILL, DOWN, ACROSS, ALONG = range(4)
TEXT, FRAME = (ALONG,) * 3, (STILL, DOWN, ACROSS)
# A block of lines: its tokens; where each axis counts from; tokens of a line; tokens that the block
# has before these; how each axis counts.
Block = tuple[Any, ...]

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
        pieces: in the order of the tokens. What is a piece does not go on into another row.
        ends: of each row, the position that its delta leads to.
        media: in the order of the prompt, the first token of a medium, the one behind its last,
            and its number among the rows of all images, and of all videos behind them; of a video
            whose frames are separate, of each frame.
    """

    def __init__(self, tokens: Tokens, index_axes: int | None = None) -> None:
        self.tokens = tokens
        self.pieces: list[Piece] = []
        self.ends: list[int] = []
        self.media: list[tuple[int, int, int]] = []
        self.num_axes = 3 + (index_axes or 0)
        self._index_axes = index_axes

    def count(self, first: int, tokens: int) -> None:
        """Add tokens of text, if any, which count up from `first` on all axes."""
        if tokens:
            self.pieces.append((first, None, range(first, first + tokens)))

    def cells(self, time: int, rows: Sequence[int], columns: Sequence[int]) -> None:
        """Add a frame, line after line: its position in time, those of its rows and columns.

        The columns of a line do not descend.
        """
        self.pieces.append((time, rows, columns))

    def deltas(self, spec: MRopeSpec) -> list[float]:
        """Return the delta of each row."""
        tokens = self.tokens
        bounds = tokens.given_bounds if spec.delta_length == "padded" else tokens.bounds
        return [*map(sub, self.ends, map(sub, bounds[1:], bounds))]

    def positions(self) -> Tensor:
        """Return the positions (A, N) int64 of the unmasked tokens."""
        bounds, pieces = self.tokens.bounds, self.pieces
        if self._index_axes is None:
            return write_pieces(pieces, bounds[-1])
        positions = write_pieces(pieces, bounds[-1]).flip(0)
        if not self._index_axes:
            return positions
        rows: list[Piece] = [(0, None, range(end - at)) for at, end in pairwise(bounds)]
        index = write_pieces(rows, bounds[-1])[:1]
        return torch.cat((index.expand(self._index_axes, -1), positions))

    def blocks(self) -> list[Block]:
        """Return the unmasked tokens as blocks, none of which goes on into another row."""
        blocks: list[Block] = []
        for time, rows, columns in self.pieces:
            size = len(columns)
            if rows is None:
                blocks.append((size, time, time, time, 1, 0, TEXT))
            elif isinstance(rows, range) and isinstance(columns, range):
                tokens = size * len(rows)
                blocks.append((tokens, time, rows.start, columns.start, size, 0, FRAME))
            else:
                parts = _straight(columns)
                blocks += [(n, time, row, at, n, 0, to) for row in rows for n, at, to in parts]
        if self._index_axes is None:
            return blocks
        bounds, added = self.tokens.bounds, self._index_axes
        starts = accumulate([block[0] for block in blocks[:-1]], initial=0)
        index = [start - bounds[bisect_right(bounds, start) - 1] for start in starts]
        return [
            (size, *(at,) * added, *bases[::-1], width, 0, (ALONG,) * added + steps[::-1])
            for at, (size, *bases, width, _, steps) in zip(index, blocks, strict=False)
        ]


def _straight(columns: Sequence[int]) -> list[tuple[int, int, tuple[int, int, int]]]:
    """Cut the columns of a line where they do not go on: tokens, first column, and its axes."""
    parts: list[tuple[int, int, int]] = []
    size = first = previous = 0
    for before, column in pairwise((columns[0] - 2, *columns)):
        step = column - before
        if parts:
            size, first, previous = parts[-1]
        if step <= 1 and (size == 1 or previous == step):
            parts[-1] = (size + 1, first, step)
        else:
            parts.append((1, column, 0))
    return [(size, column, (STILL, STILL, step * ACROSS)) for size, column, step in parts]


def write_pieces(pieces: Sequence[Piece], num_tokens: int) -> Tensor:
    """Return the positions (3, N) int64 of pieces of N tokens."""
    most = max(_FEW, 1 << num_tokens.bit_length())
    numbers = (upwards if num_tokens <= _KEPT else upwards.__wrapped__)(most, "q")
    in_time: list[bytes] = []
    in_height: list[bytes] = []
    in_width: list[bytes] = []
    for time, rows, columns in pieces:
        width = len(columns)
        if type(columns) is range and columns.start >= 0 and columns.stop <= most:
            across = numbers[_SIZE * columns.start : _SIZE * columns.stop]
        else:
            across = array("q", columns).tobytes()
        if rows is None:
            in_time.append(across)
            in_height.append(across)
            in_width.append(across)
        else:
            in_time.append(_pack(time) * (len(rows) * width))
            in_height += map(mul, map(_pack, rows), repeat(width))
            in_width.append(across * len(rows))
    joined = bytearray().join(chain(in_time, in_height, in_width))
    if not joined:
        return torch.empty((3, 0), dtype=torch.int64, device="cpu")
    return torch.frombuffer(joined, dtype=torch.int64).view(3, -1)


@lru_cache(maxsize=16)
def upwards(length: int, code: str) -> bytes:
    """Return the numbers from 0 to `length - 1` as bytes; `code` is a format of `struct`."""
    return array(code, range(length)).tobytes()
