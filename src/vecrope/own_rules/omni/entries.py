"""The positions of an omni prompt laid out on the host, entry after entry.

Each position is one sum of a base and a number that does not depend on it, rounded as that sum is.
The numbers are bytes, of which an entry has few that differ, and are added to the bases of all
tokens at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, repeat
from operator import mul
from struct import Struct

import torch
from torch import Tensor

Cut = tuple[int, int]
# A block of frames and the tokens that count up from its base, which are its sound, or all there is
# of text, markers and audio: base, in a block of rows and columns; height and width of a frame in
# tokens, 0 without frames; temporal offsets of the frames; cuts: how many tokens of the frames, and
# how many that count up, stand before each place at which the latter are followed by a frame, and,
# always, before the end.
Entry = tuple[float, int, int, Sequence[float], Sequence[Cut]]
# Tokens of a frame whose rows are kept between calls, at most.
_KEPT = 2**12


def write_entries(entries: Sequence[Entry], dtype: torch.dtype) -> Tensor:
    """Return the positions (3, N) of the tokens of entries, at least one.

    Args:
        entries: in the order of the tokens.
        dtype: int64 or float32.
    """
    code, size = ("f", 4) if dtype == torch.float32 else ("q", 8)
    pack = Struct(code).pack
    most = max([max(width, cuts[-1][1]) for _, _, width, _, cuts in entries])
    upwards = memoryview(_upwards(1 << most.bit_length(), code))
    bases: list[bytes] = []
    axes: tuple[list[bytes | memoryview], ...] = ([], [], [])
    for base, height, width, offsets, cuts in entries:
        of_frames, counted = cuts[-1]
        bases.append(pack(base) * (of_frames + counted))
        if not of_frames:
            for pieces in axes:
                pieces.append(upwards[: size * counted])
            continue
        still = map(mul, map(pack, offsets), repeat(height * width))
        rows_of = _rows if height * width <= _KEPT else _rows.__wrapped__
        down, across = rows_of(height, width, code), bytes(upwards[: size * width]) * height
        columns = [*still], [down] * len(offsets), [across] * len(offsets)
        if not counted:
            for pieces, column in zip(axes, columns, strict=True):
                pieces += column
            continue
        ends, heard = ([size * end for end in side] for side in zip(*cuts, strict=True))
        sounds = [*map(upwards.__getitem__, map(slice, (0, *heard), heard))]
        for pieces, column in zip(axes, columns, strict=True):
            if ends == [*range(0, ends[-1] + 1, len(down))]:
                before = [b"", *column]
            else:
                before = [*map(b"".join(column).__getitem__, map(slice, (0, *ends), ends))]
            pieces += chain.from_iterable(zip(before, sounds, strict=True))
    positions = torch.frombuffer(bytearray().join(chain(*axes)), dtype=dtype).view(3, -1)
    of_tokens = torch.frombuffer(bytearray().join(bases), dtype=dtype)
    for axis in positions:  # one at a time takes no threads up to 2**15 tokens
        axis.add_(of_tokens)
    return positions


@lru_cache(maxsize=16)
def _upwards(length: int, code: str) -> bytes:
    """Return the numbers from 0 to `length - 1` as bytes."""
    return array(code, range(length)).tobytes()


@lru_cache(maxsize=256)
def _rows(height: int, width: int, code: str) -> bytes:
    """Return the row of each token of a frame as bytes."""
    pack = Struct(code).pack
    return b"".join(map(mul, map(pack, range(height)), repeat(width)))
