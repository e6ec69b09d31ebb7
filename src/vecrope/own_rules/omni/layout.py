"""An omni batch laid out on the host, and its positions as bytes.

Each position is one sum of a base and a number, rounded as that sum is: of a token that counts up,
of a line or a column, of a frame. There are few of them, of which the bytes of all tokens are made.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain, pairwise, repeat
from math import ceil, frexp
from operator import add, eq, mul, sub
from struct import Struct
from typing import Any

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

# Of each part of a video with sound: its position in time; its tokens in the frame, the first and
# where they stop, nothing if each part is a frame; how many tokens of the sound come before it.
_Parts = tuple[Sequence[float], Sequence[tuple[int, int]], Sequence[int]]


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
        heights, widths = ([*map(of.__getitem__, visuals)] for of in (media.height, media.width))
        areas = [*map(mul, heights, widths)]
        needs = [a if a > b else b for a, b in zip(counts, widths, strict=True)]
        numbers = upwards(1 << max(needs).bit_length(), code)
        upto = [numbers[: size * need] for need in needs]
        lines = [_lines(a, b, code) if a else b"" for a, b in zip(heights, widths, strict=True)]
        sums = bytearray().join(_in_turn(upto, lines))
        starts = bytearray().join(map(mul, map(pack, bases), map(add, needs, areas)))
        torch.frombuffer(sums, dtype=dtype).add_(torch.frombuffer(starts, dtype=dtype))
        written, at = bytes(sums), 0
        times, rows, columns = list[bytes](), list[bytes](), list[bytes]()
        sizes = zip(needs, areas, heights, widths, strict=True)
        for (base, visual, counted), (need, area, height, width) in zip(
            self._entries, sizes, strict=True
        ):
            sound = written[at : at + size * counted]
            if not area:
                times.append(sound)
                rows.append(sound)
                columns.append(sound)
                at += size * need
                continue
            across = written[at : at + size * width] * height
            at += size * (need + area)
            down = written[at - size * area : at]
            if not counted:
                offsets = media.offsets[visual]
                times += map(mul, map(pack, map(add, repeat(base), offsets)), repeat(area))
                rows += repeat(down, len(offsets))
                columns += repeat(across, len(offsets))
                continue
            time, cells, begin = self._parts(base, visual, counted)
            ends = [*begin[1:], counted]
            heard = [sound[size * a : size * b] for a, b in zip(begin, ends, strict=True)]
            tokens: Iterable[int] = repeat(area)
            downs: Iterable[bytes] = repeat(down)
            acrosses: Iterable[bytes] = repeat(across)
            if cells:
                tokens = [stop - first for first, stop in cells]
                inside = [slice(size * first, size * stop) for first, stop in cells]
                downs, acrosses = (map(of.__getitem__, inside) for of in (down, across))
            times += _in_turn(map(mul, map(pack, time), tokens), heard)
            rows += _in_turn(downs, heard)
            columns += _in_turn(acrosses, heard)
        joined = bytearray().join(chain(times, rows, columns))
        return torch.frombuffer(joined, dtype=dtype).view(3, -1)

    def blocks(self) -> list[Block]:
        """Return the unmasked tokens as blocks, none of which goes on into another row."""
        media, near = self._media, float32 if self._rounds else float
        blocks: list[Block] = []
        for base, visual, counted in self._entries:
            area, width = media.height[visual] * media.width[visual], media.width[visual]
            parts: _Parts = [0.0], [], [0]  # text has a frame without a token
            if visual >= 0 and counted:
                parts = self._parts(base, visual, counted)
            elif visual >= 0:
                offsets = media.offsets[visual]
                parts = [near(base + offset) for offset in offsets], [], [0] * len(offsets)
            times, cells, begins = parts
            ends = [*begins[1:], counted]
            for time, (first, stop), begin, end in zip(
                times, cells or repeat((0, area)), begins, ends, strict=False
            ):
                if stop > first:
                    blocks.append((stop - first, time, base, base, width, first, FRAME))
                # Where the first is rounded, the others may be rounded otherwise.
                each = end - begin if near(base + begin) == base + begin else 1
                for number in range(begin, end, each or 1):
                    head = near(base + number)
                    blocks.append((each, head, head, head, 1, 0, TEXT))
        return blocks

    def _parts(self, base: float, visual: int, counted: int) -> _Parts:
        """Return the frames of a video, cut where `counted` tokens of sound may stand in front.

        That is where a frame begins, or one of its tokens begins a chunk.
        """
        rule, media = self._spec.own_rule, self._media
        assert isinstance(rule, OmniRule)
        offsets, begun = media.offsets[visual], media.begun[visual]
        code = "f" if self._rounds else "q"
        times: Sequence[float] = array(code, map(add, repeat(base), offsets))
        cells: list[tuple[int, int]] = []
        if rule.interleave == "merge":
            begins = [*map(ceil, map(sub, times, repeat(base)))]
            if self._rounds and base + counted >= 2.0 ** frexp(base)[1]:
                # A token of the sound that is rounded up may join the frame.
                latest = array(code, map(add, begins, repeat(base - 1)))
                begins = [*map(sub, begins, map(eq, latest, times))]
        else:
            # Each token begins one chunk at most.
            chunks = accumulate(chain.from_iterable([[1] * number or [0] for number in begun]))
            begins = [*map(mul, chunks, repeat(chunk_length(self._spec, rule)))]
            if any(begun):
                per = [number or 1 for number in begun]
                area = media.height[visual] * media.width[visual]
                firsts = [*chain.from_iterable(map(range, per))]
                stops = [a + 1 if b else area for a, b in pairwise([*firsts, 0])]
                times = [*chain.from_iterable(map(repeat, times, per))]
                cells = [*zip(firsts, stops, strict=True)]
        return times, cells, [number if number < counted else counted for number in begins]


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
