"""An omni batch laid out on the host, and its positions as bytes.

Each position is one sum of a base and a number, rounded as that sum is: of a token that counts up,
of a line or a column, of a frame. There are few of them, of which the bytes of all tokens are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice, pairwise, repeat
from operator import mul
from struct import Struct

import torch
from torch import Tensor

from vecrope.checks import RowError
from vecrope.families.rules import OmniRule
from vecrope.own_rules.common import Tokens
from vecrope.own_rules.layout import FRAME, TEXT, Block, Layout, upwards
from vecrope.own_rules.omni.find import Finder
from vecrope.own_rules.omni.media import MOST_FLOAT, Media, float32, omni_dtypes, read_media
from vecrope.own_rules.omni.number import Entry, follow
from vecrope.spec import MRopeSpec


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
        self._rounds = spec.position_dtype == "float32"

    def deltas(self, spec: MRopeSpec) -> list[float]:
        """Return the delta of each row."""
        tokens, rule = self.tokens, spec.own_rule
        assert isinstance(rule, OmniRule)
        _, dtype, padding = omni_dtypes(tokens.inputs, spec, rule)
        near = float32 if dtype == torch.float32 else int
        kept, given, deltas = tokens.bounds, tokens.given_bounds, []
        for row, most in enumerate(self._largest):
            number, length = kept[row + 1] - kept[row], given[row + 1] - given[row]
            if padding is not None and number < length:
                most = max(most, padding)
            taken = length if spec.delta_length == "padded" else number
            deltas.append(near(near(most + 1) - taken))
        return deltas

    def positions(self) -> Tensor:
        """Return the positions (3, N), float32 or int64, of the unmasked tokens."""
        code, dtype = ("f", torch.float32) if self._rounds else ("q", torch.int64)
        if not self._entries:
            return torch.empty((3, 0), dtype=dtype, device="cpu")
        media, pack, size = self._media, Struct(code).pack, Struct(code).size
        most = max(counted for _, _, counted, _ in self._entries)
        numbers = upwards(1 << most.bit_length(), code)
        times, rows, columns, bases = list[bytes](), list[bytes](), list[bytes](), list[bytes]()
        for base, visual, counted, (offsets, cells, begins) in self._entries:
            bases.append(pack(base) * (media.size[visual] + counted))
            if visual < 0:
                text = numbers[: size * counted]
                times.append(text)
                rows.append(text)
                columns.append(text)
                continue
            height, width = media.height[visual], media.width[visual]
            down, across = _frame(height, width, code)
            frames = map(mul, map(pack, offsets), repeat(height * width))
            if not counted:
                times += frames
                rows += repeat(down, len(offsets))
                columns += repeat(across, len(offsets))
                continue
            downs: Iterator[bytes] = repeat(down)
            acrosses: Iterator[bytes] = repeat(across)
            if cells:
                frames = map(mul, map(pack, offsets), (stop - first for first, stop in cells))
                downs = (down[size * first : size * stop] for first, stop in cells)
                acrosses = (across[size * first : size * stop] for first, stop in cells)
            for begin, end in pairwise([*begins, counted]):
                sound = numbers[size * begin : size * end]
                times += next(frames), sound
                rows += next(downs), sound
                columns += next(acrosses), sound
            times += frames
            rows += islice(downs, len(offsets) - len(begins))
            columns += islice(acrosses, len(offsets) - len(begins))
        joined = bytearray().join(chain(times, rows, columns))
        positions = torch.frombuffer(joined, dtype=dtype).view(3, -1)
        return positions.add_(torch.frombuffer(bytearray().join(bases), dtype=dtype))

    def blocks(self) -> list[Block]:
        """Return the unmasked tokens as blocks, none of which goes on into another row."""
        media, near = self._media, float32 if self._rounds else float
        blocks: list[Block] = []
        for base, visual, counted, (offsets, cells, begins) in self._entries:
            area, width = media.height[visual] * media.width[visual], media.width[visual]
            begins = [*begins, *repeat(counted, len(offsets) - len(begins))]
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


@lru_cache(maxsize=128)
def _frame(height: int, width: int, code: str) -> tuple[bytes, bytes]:
    """Return the number of its line for each token of a frame, and that of its column, as bytes."""
    numbers = [*map(Struct(code).pack, range(max(height, width)))]
    return b"".join(map(mul, numbers[:height], repeat(width))), b"".join(numbers[:width]) * height


def lay_out_omni(tokens: Tokens, spec: MRopeSpec) -> OmniLayout:
    """Find the items of a batch, and follow the running position over them.

    Raises:
        ValueError: for media that are not sound, or do not fit the tokens.
    """
    inputs, rule = tokens.inputs, spec.own_rule
    assert isinstance(rule, OmniRule)
    media = read_media(inputs, spec, rule)
    items = Finder(tokens, media, spec).find()
    entries, largest = follow(items, media, tokens.bounds, spec, rule)
    for row, most in enumerate(largest):
        if spec.position_dtype == "float32" and most >= MOST_FLOAT:
            raise RowError.of(
                row,
                f": positions must stay below 2**24 in torch.float32, got {most:.0f}; does "
                "second_per_grid_ts hold seconds?",
            )
    return OmniLayout(tokens, spec, media, entries, largest)
