"""An omni batch laid out on the host, and its positions as bytes.

Each position is one sum of a base and a number, rounded as that sum is: of a token that counts up,
of a line or a column, of a frame. There are few of them, of which the bytes of all tokens are made.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain, pairwise, repeat
from math import ceil
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

# Of each part of a video with sound: the offset of its frame in time; its tokens in the frame, the
# first and where they stop, nothing if each part is a frame; how many tokens of the sound come
# before it.
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
        numbers = upwards(1 << max(*counts, *media.width).bit_length(), code)
        times, rows, columns = list[bytes](), list[bytes](), list[bytes]()
        clips = self._clips()
        for visual, counted in zip(visuals, counts, strict=True):
            if visual < 0:
                text = numbers[: size * counted]
                times.append(text)
                rows.append(text)
                columns.append(text)
                continue
            height, width, offsets = (
                media.height[visual],
                media.width[visual],
                media.offsets[visual],
            )
            down, across = _lines(height, width, code), numbers[: size * width] * height
            tokens: Iterable[int] = repeat(height * width)
            if not counted:
                times += map(mul, map(pack, offsets), tokens)
                rows += repeat(down, len(offsets))
                columns += repeat(across, len(offsets))
                continue
            offsets, cells, begins = next(clips)
            ends = [*begins[1:], counted]
            sound = [numbers[size * a : size * b] for a, b in zip(begins, ends, strict=True)]
            downs: Iterable[bytes] = repeat(down)
            acrosses: Iterable[bytes] = repeat(across)
            if cells:
                tokens = [stop - first for first, stop in cells]
                downs = (down[size * first : size * stop] for first, stop in cells)
                acrosses = (across[size * first : size * stop] for first, stop in cells)
            times += _in_turn(map(mul, map(pack, offsets), tokens), sound)
            rows += _in_turn(downs, sound)
            columns += _in_turn(acrosses, sound)
        joined = bytearray().join(chain(times, rows, columns))
        sizes = map(add, map(media.area.__getitem__, visuals), counts)
        starts = bytearray().join(map(mul, map(pack, bases), sizes))
        positions = torch.frombuffer(joined, dtype=dtype).view(3, -1)
        return positions.add_(torch.frombuffer(starts, dtype=dtype))

    def blocks(self) -> list[Block]:
        """Return the unmasked tokens as blocks, none of which goes on into another row."""
        media, near = self._media, float32 if self._rounds else float
        blocks: list[Block] = []
        clips = self._clips()
        for base, visual, counted in self._entries:
            area, width = media.height[visual] * media.width[visual], media.width[visual]
            offsets = media.offsets[visual]  # text has a frame without a token
            cells: Sequence[tuple[int, int]] = ()
            begins: Sequence[int] = [0] * len(offsets)
            if visual >= 0 and counted:
                offsets, cells, begins = next(clips)
            for offset, (first, stop), begin, end in zip(
                offsets, cells or repeat((0, area)), begins, [*begins[1:], counted], strict=False
            ):
                if stop > first:
                    time = near(base + offset)
                    blocks.append((stop - first, time, base, base, width, first, FRAME))
                # Where the first is rounded, the others may be rounded otherwise.
                each = end - begin if near(base + begin) == base + begin else 1
                for number in range(begin, end, each or 1):
                    head = near(base + number)
                    blocks.append((each, head, head, head, 1, 0, TEXT))
        return blocks

    def _clips(self) -> Iterator[_Parts]:
        """Yield the frames of each video with sound, cut where tokens of the sound may stand.

        That is where a frame begins, or one of its tokens begins a chunk.
        """
        rule, media = self._spec.own_rule, self._media
        assert isinstance(rule, OmniRule)
        clips = [entry for entry in self._entries if entry[1] >= 0 < entry[2]]
        of_clips = [media.offsets[visual] for _, visual, _ in clips]
        numbers = [*map(len, of_clips)]  # of frames
        if rule.interleave == "merge":
            code = "f" if self._rounds else "q"
            bases = [base for base, _, _ in clips]
            starts = [*chain.from_iterable(map(repeat, bases, numbers))]
            times = array(code, map(add, starts, chain.from_iterable(of_clips)))
            begins = [*map(ceil, map(sub, times, starts))]
            if self._rounds:
                # A token of the sound that is rounded up may join the frame.
                latest = array(code, map(sub, map(add, starts, begins), repeat(1)))
                begins = [*map(sub, begins, map(eq, latest, times))]
            ends = accumulate(numbers)
            for (_, _, most), offsets, end in zip(clips, of_clips, ends, strict=True):
                own = begins[end - len(offsets) : end]
                yield offsets, [], [number if number < most else most for number in own]
            return
        for (_, visual, counted), offsets in zip(clips, of_clips, strict=True):
            begun, cells = media.begun[visual], list[tuple[int, int]]()
            # Each token begins one chunk at most.
            chunks = accumulate(chain.from_iterable([1] * number or [0] for number in begun))
            begins = [*map(mul, chunks, repeat(chunk_length(self._spec, rule)))]
            if max(begun) > 1:
                per = [number or 1 for number in begun]
                area = media.height[visual] * media.width[visual]
                firsts = [*chain.from_iterable(map(range, per))]
                stops = [a + 1 if b else area for a, b in pairwise([*firsts, 0])]
                offsets = [*chain.from_iterable(map(repeat, offsets, per))]
                cells = [*zip(firsts, stops, strict=True)]
            yield offsets, cells, [number if number < counted else counted for number in begins]


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
