"""Positions laid out on the host, one run of text or block of cells after the other."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from struct import Struct

import torch
from torch import Tensor

_pack = Struct("q").pack
_SIZE = 8


class Layout:
    """Positions (3, N) under construction, in the order of the tokens, as bytes of int64.

    Args:
        num_tokens: N.
    """

    def __init__(self, num_tokens: int) -> None:
        numbers = bytearray(_SIZE * max(num_tokens, 1))
        torch.arange(max(num_tokens, 1), out=torch.frombuffer(numbers, dtype=torch.int64))
        self._upwards, self._num_tokens = memoryview(numbers), num_tokens
        self.largest = -1  # of the positions so far
        self._axes: tuple[list[bytes | memoryview], ...] = ([], [], [])

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

    def token(self, *positions: int) -> None:
        """Add one token: its position in time, height and width."""
        self.largest = max(self.largest, *positions)
        for axis, position in zip(self._axes, positions, strict=True):
            axis.append(_pack(position))

    def cells(self, time: int, rows: Sequence[int], columns: Sequence[int]) -> None:
        """Add a frame, line after line: its position in time, those of its rows and columns."""
        self.largest = max(self.largest, time, rows[-1], columns[-1])
        width = len(columns)
        in_time, in_height, in_width = self._axes
        in_time.append(_pack(time) * (len(rows) * width))
        in_height.append(b"".join([_pack(row) * width for row in rows]))
        in_width.append(bytes(self._of(columns)) * len(rows))

    def positions(self) -> Tensor:
        """Return what has been added, (3, N) int64."""
        joined = bytearray().join(chain(*self._axes))
        if not joined:
            return torch.empty((3, 0), dtype=torch.int64, device="cpu")
        return torch.frombuffer(joined, dtype=torch.int64).view(3, -1)

    def _of(self, numbers: Sequence[int]) -> bytes | memoryview:
        if isinstance(numbers, range) and 0 <= numbers.start <= numbers.stop <= self._num_tokens:
            return self._upwards[_SIZE * numbers.start : _SIZE * numbers.stop]
        return array("q", numbers).tobytes()
