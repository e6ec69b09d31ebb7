"""An omni batch laid out on the host, and its positions as bytes.

Each position is one sum of a base and a number, rounded as that sum is: of a token that counts up,
of a line or a column, of a frame. There are few of them, of which the bytes of all tokens are made.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain, repeat
from math import ceil
from operator import add, eq, getitem, mul, sub
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


class _Parts(NamedTuple):
    """The parts of entries: each has tokens of a frame, then some that count up, or neither."""

    numbers: list[int]  # of parts of each entry
    offset: list[float]  # of the frame in time, as the others of each part
    first: list[int]  # its tokens: the first in the frame,
    stop: list[int]  # and where they stop
    begin: list[int]  # the tokens that count up: the first in the entry,
    end: list[int]  # and where they stop


class OmniLayout(Layout):
    """The entries of the unmasked tokens of a batch, and the largest position of each row."""

    def __init__(
        self,
        tokens: Tokens,
        spec: MRopeSpec,
        media: Media,
        entries: Sequence[Entry],
        largest: Sequence[float],
    ) -> None:
        super().__init__(tokens)
        self._media, self._entries, self._largest = media, entries, largest
        self._spec, self._rounds = spec, spec.position_dtype == "float32"

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
        code, dtype = ("f", torch.float32) if self._rounds else ("q", torch.int64)
        if not self._entries:
            return torch.empty((3, 0), dtype=dtype, device="cpu")
        media, pack, size = self._media, Struct(code).pack, Struct(code).size
        bases, visuals, counts = zip(*self._entries, strict=True)
        parts = self._parts()
        numbers = upwards(1 << max(*counts, *media.width).bit_length(), code)
        sound = [numbers[size * a : size * b] for a, b in zip(parts.begin, parts.end, strict=True)]
        times = map(mul, map(pack, parts.offset), map(sub, parts.stop, parts.first))
        lines = [*map(_lines, media.height, media.width, repeat(code))]
        cells = [numbers[: size * b] * a for a, b in zip(media.height, media.width, strict=True)]
        rows, columns = (
            chain.from_iterable(map(repeat, map(of.__getitem__, visuals), parts.numbers))
            for of in (lines, cells)
        )
        if any(parts.first):
            cuts = [slice(size * a, size * b) for a, b in zip(parts.first, parts.stop, strict=True)]
            rows, columns = (map(getitem, of, cuts) for of in (rows, columns))
        joined = bytearray().join(chain(*(_in_turn(of, sound) for of in (times, rows, columns))))
        starts = bytearray().join(
            map(mul, map(pack, bases), map(add, map(media.area.__getitem__, visuals), counts))
        )
        positions = torch.frombuffer(joined, dtype=dtype).view(3, -1)
        return positions.add_(torch.frombuffer(starts, dtype=dtype))

    def blocks(self) -> list[Block]:
        """Return the unmasked tokens as blocks, none of which goes on into another row."""
        near, blocks = float32 if self._rounds else float, list[Block]()
        numbers, *parts = self._parts()
        of_parts = chain.from_iterable(map(repeat, self._entries, numbers))
        for (base, visual, _), offset, first, stop, begin, end in zip(of_parts, *parts, strict=True):
            if stop > first:
                width = self._media.width[visual]
                blocks.append((stop - first, near(base + offset), base, base, width, first, FRAME))
            # Where the first is rounded, the others may be rounded otherwise.
            each = end - begin if near(base + begin) == base + begin else 1
            for number in range(begin, end, each or 1):
                head = near(base + number)
                blocks.append((each, head, head, head, 1, 0, TEXT))
        return blocks

    def _parts(self) -> _Parts:
        """Return the frames of the entries, cut where tokens of the sound may stand in between.

        That is where a frame begins, or one of its tokens begins a chunk.
        """
        rule, media = self._spec.own_rule, self._media
        assert isinstance(rule, OmniRule)
        bases, visuals, counts = zip(*self._entries, strict=True)
        of_entries = [*map(media.offsets.__getitem__, visuals)]
        numbers = [*map(len, of_entries)]
        offset = [*chain.from_iterable(of_entries)]
        areas = map(mul, media.height, media.width)
        stop = [*chain.from_iterable(map(repeat, map([*areas].__getitem__, visuals), numbers))]
        first, begin = [0] * len(stop), [0] * len(stop)
        if rule.interleave == "merge" and any(media.has_sound):
            code = "f" if self._rounds else "q"
            base = [*chain.from_iterable(map(repeat, bases, numbers))]
            times = array(code, map(add, base, offset))
            begin = [*map(ceil, map(sub, times, base))]
            # A token of the sound that is rounded up may join the frame.
            latest = array(code, map(add, map(sub, begin, repeat(1)), base))
            begin = [*map(sub, begin, map(eq, latest, times))]
        elif any(media.has_sound):
            length = chunk_length(self._spec, rule)
            begun = [
                media.begun[visual] if counted and visual >= 0 else [0] * number
                for visual, counted, number in zip(visuals, counts, numbers, strict=True)
            ]
            # Each token begins one chunk at most.
            begin = [
                *chain.from_iterable(
                    accumulate(chain.from_iterable([length] * each or [0] for each in of))
                    for of in begun
                )
            ]
            if max(chain.from_iterable(begun)) > 1:
                per = [each or 1 for of in begun for each in of]
                stop = [*chain.from_iterable([*range(1, n), area] for n, area in zip(per, stop))]
                first = [*chain.from_iterable(map(range, per))]
                offset = [*chain.from_iterable(map(repeat, offset, per))]
                numbers = [sum(each or 1 for each in of) for of in begun]
        counted = chain.from_iterable(map(repeat, counts, numbers))
        begin = [a if a < b else b for a, b in zip(begin, counted, strict=True)]
        end = [*begin[1:], 0]
        for last, count in zip(accumulate(numbers), counts, strict=True):
            end[last - 1] = count
        return _Parts(numbers, offset, first, stop, begin, end)


@lru_cache(maxsize=128)
def _lines(height: int, width: int, code: str) -> bytes:
    """Return the number of its line for each token of a frame, as bytes."""
    return b"".join(map(mul, map(Struct(code).pack, range(height)), repeat(width)))


def _in_turn(*sources: Iterable[Any]) -> Iterator[Any]:
    return chain.from_iterable(zip(*sources, strict=False))


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
    return OmniLayout(tokens, spec, media, entries, largest)
