"""An omni batch laid out on the host, and its positions as bytes.

Each position is one sum of a base and a number that does not depend on it, rounded as that sum is.
The numbers are bytes, of which few differ, and are added to the bases of all tokens at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import accumulate, chain, repeat
from math import ceil
from operator import add, eq, itemgetter, mul, sub
from struct import Struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vecrope.checks import RowError
from vecrope.families.rules import OmniRule
from vecrope.own_rules.common import Tokens
from vecrope.own_rules.layout import FRAME, TEXT, Block, Layout, upwards
from vecrope.own_rules.omni.find import Finder
from vecrope.own_rules.omni.media import (
    MOST_FLOAT,
    Dtypes,
    Media,
    chunk_length,
    float32,
    read_media,
    timed,
)
from vecrope.own_rules.omni.number import Entry, follow
from vecrope.spec import MRopeSpec

# Tokens of a table of rows and columns that is kept between calls, at most.
_KEPT = 2**12


class Pieces(NamedTuple):
    """The same tokens of some frames, and behind them some that count up; P, a column each."""

    base: Sequence[float]  # position that all count from
    offsets: Sequence[Sequence[float]]  # of each frame in time
    # Of a frame's tokens the first, and where they stop; and the width of the frame.
    cells: Sequence[tuple[int, int, int]]
    begin: Sequence[int]  # of the numbers that are counted
    end: Sequence[int]


class OmniLayout(Layout):
    """The pieces of the unmasked tokens of a batch, and the largest position of each row."""

    def __init__(
        self, tokens: Tokens, spec: MRopeSpec, pieces: Pieces, largest: Sequence[float]
    ) -> None:
        super().__init__(tokens)
        self._pieces, self._largest = pieces, largest
        self._rounds = spec.position_dtype == "float32"

    def deltas(self, spec: MRopeSpec) -> list[float]:
        """Return the delta of each row."""
        tokens, rule = self.tokens, spec.own_rule
        assert isinstance(rule, OmniRule)
        dtypes = Dtypes.of(tokens.inputs, spec, rule)
        kept, lengths = (
            [*map(sub, bounds[1:], bounds)] for bounds in (tokens.bounds, tokens.given_bounds)
        )
        near = float32 if dtypes.deltas == torch.float32 else int
        deltas = []
        for most, length, number in zip(self._largest, lengths, kept, strict=True):
            if dtypes.counts_padding and number < length:
                most = max(most, dtypes.padding)
            taken = length if spec.delta_length == "padded" else number
            deltas.append(near(near(most + 1) - taken))
        return deltas

    def positions(self) -> Tensor:
        """Return the positions (3, N), float32 or int64, of the unmasked tokens."""
        return write_pieces(self._pieces, torch.float32 if self._rounds else torch.int64)

    def blocks(self) -> list[Block]:
        """Return the unmasked tokens as blocks, none of which goes on into another row."""
        return blocks_of(self._pieces, rounds=self._rounds)


def lay_out_omni(tokens: Tokens, spec: MRopeSpec) -> OmniLayout:
    """Find the items of a batch, and follow the running position over them.

    Raises:
        ValueError: for media that are not sound, or do not fit the tokens.
    """
    inputs, rule = tokens.inputs, spec.own_rule
    assert isinstance(rule, OmniRule)
    media = read_media(inputs, spec, rule)
    items = Finder(tokens, media, spec).find()
    media = timed(media, [item[3] for item in items], spec, rule)
    entries, largest = follow(items, media, tokens.bounds, spec, rule)
    for row, most in enumerate(largest):
        if spec.position_dtype == "float32" and most >= MOST_FLOAT:
            raise RowError.of(
                row,
                f": positions must stay below 2**24 in torch.float32, got {most:.0f}; does "
                "second_per_grid_ts hold seconds?",
            )
    return OmniLayout(tokens, spec, pieces_of(entries, media, spec, rule), largest)


def pieces_of(entries: Sequence[Entry], media: Media, spec: MRopeSpec, rule: OmniRule) -> Pieces:
    """Cut entries where frames follow sound."""
    if not entries:
        return Pieces((), (), (), (), ())
    bases, visuals, counted = zip(*entries, strict=True)
    if not any(media.has_sound):
        whole = [*zip(repeat(0), map(mul, media.height, media.width), media.width, strict=False)]
        frames = map(media.offsets.__getitem__, visuals)
        in_frame = map(whole.__getitem__, visuals)
        return Pieces(bases, [*frames], [*in_frame], [0] * len(bases), counted)
    of = media.offsets, media.begun, media.has_sound, media.height, media.width
    parts = [*map([*map(_parts, *of)].__getitem__, visuals)]
    per = [len(chunks) for _, _, chunks in parts]
    offsets, cells, chunks = ([*chain(*column)] for column in zip(*parts, strict=True))
    base = _spread(bases, per)
    # How many of the tokens that count up stand in front of each piece.
    before: Iterable[int] = map(mul, chunks, repeat(chunk_length(spec, rule)))
    if rule.interleave == "merge":
        times = map(itemgetter(0), offsets)
        before = _before_by_time(base, times, rounds=spec.position_dtype == "float32")
    most = _spread(counted, per)
    begin = [a if a < b else b for a, b in zip(before, most, strict=True)]
    end = [*begin[1:], 0]
    for following, number in zip(accumulate(per), counted, strict=True):
        end[following - 1] = number
    return Pieces(base, offsets, cells, begin, end)


def _spread(values: Iterable[Any], numbers: Sequence[int]) -> list[Any]:
    """Return each value so many times."""
    return [*chain.from_iterable(map(repeat, values, numbers))]


def _before_by_time(
    base: Sequence[float], offset: Iterable[float], *, rounds: bool
) -> Iterator[int]:
    """Return how many of the numbers from a base on come before a time."""
    rounded = partial(array, "f" if rounds else "d")
    times = rounded(map(add, base, offset))
    before = [*map(ceil, map(sub, times, base))]
    # Rounding moves a token of the sound by less than one: it may join the frame.
    latest = rounded(map(add, base, map(sub, before, repeat(1))))
    return map(sub, before, map(eq, latest, times))


def _parts(
    offsets: Sequence[float], begun: Sequence[int], has_sound: bool, height: int, width: int
) -> tuple[list[Sequence[float]], list[tuple[int, int, int]], list[int]]:
    """Cut frames where sound may stand in front of one, or of a token that begins a chunk.

    Returns:
        `offsets` and `cells` of each of `Pieces`, and how many chunks have begun.
    """
    area = height * width
    frames: list[Sequence[float]] = [*zip(offsets, strict=True)] if has_sound else [offsets]
    cells, chunks = [(0, area, width)] * len(frames), [0] * len(frames)
    if not has_sound or not any(begun):
        return frames, cells, chunks
    # Each token begins one chunk at most.
    per = [number or 1 for number in begun]
    firsts = [*chain.from_iterable(map(range, per))]
    stops = [
        first + 1 if after else area for first, after in zip(firsts, [*firsts[1:], 0], strict=True)
    ]
    chunks = [*accumulate(chain.from_iterable([[1] * number or [0] for number in begun]))]
    return _spread(frames, per), [*zip(firsts, stops, repeat(width))], chunks


def blocks_of(pieces: Pieces, *, rounds: bool) -> list[Block]:
    """Return the blocks of pieces, in their order; `rounds`: whether positions are float32."""
    near = float32 if rounds else float
    blocks: list[Block] = []
    for base, offsets, (first, stop, width), begin, end in zip(*pieces, strict=True):
        if stop > first:
            blocks += [
                (stop - first, near(base + offset), base, base, width, first, FRAME)
                for offset in offsets
            ]
        # Where the first is rounded, the others may be rounded otherwise.
        each = end - begin if near(base + begin) == base + begin else 1
        for number in range(begin, end, each or 1):
            head = near(base + number)
            blocks.append((each, head, head, head, 1, 0, TEXT))
    return blocks


def write_pieces(pieces: Pieces, dtype: torch.dtype) -> Tensor:
    """Return the positions (3, N) of the tokens of pieces, int64 or float32."""
    if not pieces.base:
        return torch.empty((3, 0), dtype=dtype, device="cpu")
    code = "f" if dtype == torch.float32 else "q"
    base, all_offsets, cells, begin, end = pieces
    pack, size = Struct(code).pack, Struct(code).size
    numbers = memoryview(upwards(1 << max(end).bit_length(), code))
    counted = [numbers[size * a : size * b] for a, b in zip(begin, end, strict=True)]
    grids = {of: (_grid if of[1] <= _KEPT else _grid.__wrapped__)(*of, code) for of in {*cells}}
    sizes, rows, columns = zip(*map(grids.__getitem__, cells), strict=True)
    frames = [*map(len, all_offsets)]
    times = [
        pack(offsets[0]) * number
        if len(offsets) == 1
        else b"".join([pack(offset) * number for offset in offsets])
        for offsets, number in zip(all_offsets, sizes, strict=True)
    ]
    axes = times, map(mul, rows, frames), map(mul, columns, frames)
    joined = chain.from_iterable(
        chain.from_iterable(zip(axis, counted, strict=True)) for axis in axes
    )
    positions = torch.frombuffer(bytearray().join(joined), dtype=dtype).view(3, -1)
    tokens = map(add, map(mul, sizes, frames), map(sub, end, begin))
    of_tokens = torch.frombuffer(bytearray().join(map(mul, map(pack, base), tokens)), dtype=dtype)
    for axis in positions:  # one at a time takes no threads up to 2**15 tokens
        axis.add_(of_tokens)
    return positions


@lru_cache(maxsize=128)
def _grid(first: int, stop: int, width: int, code: str) -> tuple[int, bytes, bytes]:
    """Return the number of some tokens of a frame, their rows and their columns as bytes."""
    pack, height = Struct(code).pack, -(-stop // width) if stop else 0
    rows = b"".join(map(mul, map(pack, range(height)), repeat(width)))
    inside = slice(first * len(pack(0)), stop * len(pack(0)))
    columns = array(code, range(width)).tobytes() * height
    return stop - first, rows[inside], columns[inside]
