"""Positions laid out on the host, one run of text or block of cells after the other."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from struct import Struct

import torch
from torch import Tensor

_pack = Struct("q").pack
_SIZE = 8
# Numbers that are kept between calls, at least and at most.
_FEW, _KEPT = 2**12, 2**18


class Layout:
    """Positions (3, N) under construction, in the order of the tokens, as bytes of int64.

    Args:
        num_tokens: N.
    """

    def __init__(self, num_tokens: int) -> None:
        upwards = _upwards if num_tokens <= _KEPT else _upwards.__wrapped__
        self._upwards = upwards(max(_FEW, 1 << num_tokens.bit_length()))
        self.largest = -1  # of the positions so far
        self._axes: tuple[list[bytes], ...] = ([], [], [])

    def count(self, first: int, tokens: int) -> None:
        """Add tokens of text, which count up from `first` on all axes."""
        if not tokens:
            return
        self.largest = max(self.largest, first + tokens - 1)
        piece = self._of(range(first, first + tokens))
        for axis in self._axes:
            axis.append(piece)

    def still(self, position: int, tokens: int) -> None:
        """Add tokens that have the same position on all axes."""
        self.largest = max(self.largest, position if tokens else -1)
        piece = _pack(position) * tokens
        for axis in self._axes:
            axis.append(piece)

    def cells(self, time: int, rows: Sequence[int], columns: Sequence[int]) -> None:
        """Add a frame, line after line: its position in time, those of its rows and columns."""
        self.largest = max(self.largest, time, rows[-1], columns[-1])
        width = len(columns)
        in_time, in_height, in_width = self._axes
        in_time.append(_pack(time) * (len(rows) * width))
        in_height.append(b"".join([_pack(row) * width for row in rows]))
        in_width.append(self._of(columns) * len(rows))

    def positions(self) -> Tensor:
        """Return what has been added, (3, N) int64."""
        joined = bytearray().join(chain(*self._axes))
        if not joined:
            return torch.empty((3, 0), dtype=torch.int64, device="cpu")
        return torch.frombuffer(joined, dtype=torch.int64).view(3, -1)

    def _of(self, numbers: Sequence[int]) -> bytes:
        if isinstance(numbers, range) and numbers.start >= 0:
            piece = self._upwards[_SIZE * numbers.start : _SIZE * numbers.stop]
            if len(piece) == _SIZE * len(numbers):
                return piece
        return array("q", numbers).tobytes()


@lru_cache(maxsize=16)
def _upwards(length: int) -> bytes:
    """Return the numbers from 0 to `length - 1` as bytes of int64."""
    return array("q", range(length)).tobytes()
