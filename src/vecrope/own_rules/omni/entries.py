"""What an omni prompt is made of, in the order of its tokens, and their positions as bytes.

Each position is one sum of a base and a number that does not depend on it, rounded as that sum is.
The numbers are bytes, of which few differ, and are added to the bases of all tokens at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import accumulate, chain, repeat
from math import ceil
from operator import add, eq, getitem, mul, sub
from struct import Struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vecrope.families.rules import OmniRule
from vecrope.own_rules.omni.media import Media, chunk_length, float32
from vecrope.own_rules.omni.number import Entry
from vecrope.spec import MRopeSpec

# Tokens of a table of rows and columns that is kept between calls, at most.
_KEPT = 2**12
# Tokens; the first one's position in time, height and width; by how much each counts up.
Line = tuple[int, float, float, float, tuple[int, int, int]]


class Pieces(NamedTuple):
    """Some tokens of a frame, and behind them some that count up; P of them, a column each."""

    base: Sequence[float]  # position that both count from
    offset: Sequence[float]  # of the frame in time
    width: Sequence[int]  # of the frame, in tokens
    first: Sequence[int]  # of the tokens of the frame
    stop: Sequence[int]
    begin: Sequence[int]  # of the numbers that are counted
    end: Sequence[int]


def pieces_of(entries: Sequence[Entry], media: Media, spec: MRopeSpec, rule: OmniRule) -> Pieces:
    """Cut entries, at least one, where a frame follows sound, and after each frame."""
    bases, visuals, counted = zip(*entries, strict=True)
    size_of = [*map(mul, media.height, media.width)]
    before: Iterable[int] = repeat(0)  # tokens that count up and stand in front of a piece
    if any(map(any, media.begun)):
        parts = [_parts(media.offsets[at], media.begun[at], size_of[at]) for at in visuals]
        offset, first, stop, chunks = zip(*chain.from_iterable(parts), strict=True)
        before = map(mul, chunks, repeat(chunk_length(spec, rule)))
        per = [*map(len, parts)]
    else:
        offset = [*chain.from_iterable(map(media.offsets.__getitem__, visuals))]
        per = [*map(media.depth.__getitem__, visuals)]
        stop = _spread(map(size_of.__getitem__, visuals), per)
        first = [0] * len(stop)
    base = _spread(bases, per)
    if rule.interleave == "merge" and any(media.has_sound):
        before = _before_by_time(base, offset, rounds=spec.position_dtype == "float32")
    begin = [*map(min, before, _spread(counted, per))]
    end = [*begin[1:], 0]
    for following, number in zip(accumulate(per), counted, strict=True):
        end[following - 1] = number
    width = _spread(map(media.width.__getitem__, visuals), per)
    return Pieces(base, offset, width, first, stop, begin, end)


def _spread(values: Iterable[Any], numbers: Sequence[int]) -> list[Any]:
    """Return each value so many times."""
    return [*chain.from_iterable(map(repeat, values, numbers))]


def _before_by_time(
    base: Sequence[float], offset: Sequence[float], *, rounds: bool
) -> Iterator[int]:
    """Return how many of the numbers from a base on come before a time."""
    rounded = partial(array, "f" if rounds else "d")
    times = rounded(map(add, base, offset))
    before = [*map(ceil, map(sub, times, base))]
    # Rounding moves a token of the sound by less than one: it may join the frame.
    latest = rounded(map(add, base, map(sub, before, repeat(1))))
    return map(sub, before, map(eq, latest, times))


def _parts(
    offsets: Sequence[float], begun: Sequence[int], in_frame: int
) -> list[tuple[float, int, int, int]]:
    """Cut frames in front of each token that begins a chunk.

    Returns:
        Of each part the temporal offset, its tokens of the frame, and the chunks begun so far.
    """
    parts = []
    chunk = 0
    for offset, number in zip(offsets, begun or repeat(0), strict=False):
        for first in range(number or 1):
            chunk += number > 0
            parts.append((offset, first, first + 1 if first + 1 < number else in_frame, chunk))
    return parts


def positions_of(pieces: Pieces, dtype: torch.dtype) -> Tensor:
    """Return the positions (3, N) of the tokens of pieces, int64 or float32."""
    code, size = ("f", 4) if dtype == torch.float32 else ("q", 8)
    pack, scale = Struct(code).pack, repeat(size)
    base, offset, width, first, stop, begin, end = pieces
    # Of each width the largest frame, which comes last.
    tables = {
        of: (_table if most <= _KEPT else _table.__wrapped__)(of, 1 << most.bit_length(), code)
        for of, most in dict(sorted({*zip(width, stop, strict=True)})).items()
    }
    upwards = memoryview(_upwards(1 << max(end).bit_length(), code))
    counted = [
        *map(upwards.__getitem__, map(slice, map(mul, begin, scale), map(mul, end, scale)))
    ]
    sizes = [*map(sub, stop, first)]
    inside = [*map(slice, map(mul, first, scale), map(mul, stop, scale))]
    rows, columns = zip(*map(tables.__getitem__, width), strict=True)
    axes = (
        map(mul, map(pack, offset), sizes),
        map(getitem, rows, inside),
        map(getitem, columns, inside),
    )
    joined = chain.from_iterable(chain.from_iterable(zip(axis, counted)) for axis in axes)
    positions = torch.frombuffer(bytearray().join(joined), dtype=dtype).view(3, -1)
    numbers = map(add, sizes, map(sub, end, begin))
    of_tokens = bytearray().join(map(mul, map(pack, base), numbers))
    for axis in positions:  # one at a time takes no threads up to 2**15 tokens
        axis.add_(torch.frombuffer(of_tokens, dtype=dtype))
    return positions


@lru_cache(maxsize=16)
def _upwards(length: int, code: str) -> bytes:
    """Return the numbers from 0 to `length - 1` as bytes."""
    return array(code, range(length)).tobytes()


@lru_cache(maxsize=256)
def _table(width: int, tokens: int, code: str) -> tuple[memoryview, memoryview]:
    """Return the row and the column of at least so many tokens of a frame as bytes."""
    pack, height = Struct(code).pack, -(-tokens // (width or 1))
    rows = b"".join(map(mul, map(pack, range(height)), repeat(width)))
    return memoryview(rows), memoryview(array(code, range(width)).tobytes() * height)


def lines_of(pieces: Pieces, *, rounds: bool) -> list[Line]:
    """Return pieces as lines, along which every axis stands still or counts up.

    Args:
        pieces: in the order of the tokens.
        rounds: whether positions are float32.
    """
    near = float32 if rounds else float
    lines: list[Line] = []
    for base, offset, width, first, stop, begin, end in zip(*pieces, strict=True):
        time, at = near(base + offset), first
        while at < stop:
            row, column = divmod(at, width)
            number = min(width - column, stop - at)
            lines.append((number, time, near(base + row), base + column, (0, 0, 1)))
            at += number
        # Where the first is rounded, a line that starts there may be rounded otherwise.
        each = end - begin if near(base + begin) == base + begin else 1
        for number in range(begin, end, each or 1):
            head = near(base + number)
            lines.append((each, head, head, head, (1, 1, 1)))
    return lines
