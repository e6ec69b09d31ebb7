"""The groups of a batch, a number each: lists where there are few, tensors where there are many."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, compress, repeat
from operator import add, mul, sub
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vecrope.forms.eager.items import Items

# Up to so many lines, and so groups, lists are faster than tensors.
FEW = 512


class Groups(NamedTuple):
    """G groups, all images' before all videos', or in another order."""

    items: Items
    number: int  # G
    tall: list[int]  # lines of a group of each item
    num_lines: int  # lines of all of them
    few: list[int] | None  # (G,) the item of each, where there are few
    many: Sizes | None  # what each needs, where there are many

    @property
    def deep(self) -> bool:
        """Whether any group has several frames."""
        return max(compress(self.items.depth, self.items.groups)) > 1

    def of(self, values: Sequence[Any]) -> list[Any]:
        """Return the value of each group's item, for few groups."""
        assert self.few is not None
        return [*map(values.__getitem__, self.few)]

    def column(self, values: Sequence[int]) -> Tensor:
        """Return the value of each group's item, (G,) int64."""
        if self.many is None:
            return torch.tensor(self.of(values), device="cpu")
        return host_tensor(values)[self.many.item]

    def table(self, *columns: Sequence[int]) -> Tensor:
        """Return values of each group's item, (n, G) int64."""
        if self.many is None:
            return torch.tensor([self.of(values) for values in columns], device="cpu")
        return torch.tensor(columns, device="cpu")[:, self.many.item]

    def area(self) -> Tensor:
        """Return (G,) the tokens of each group."""
        return self.column(self.items.area) if self.many is None else self.many.area

    def rank_bounds(self) -> tuple[Tensor, Tensor]:
        """Return (G,) the ranks of each group's first and last placeholder."""
        if self.many is None:
            stops = [*accumulate(self.of(self.items.area))]
            lasts = [stop - 1 for stop in stops]
            begins, ends = torch.tensor([[0, *stops[:-1]], lasts], device="cpu").unbind()
            return begins, ends
        stops_of = self.many.area.cumsum(0)
        return stops_of - self.many.area, stops_of - 1

    def reordered(self, order: list[int]) -> Groups:
        """Return the groups in another order, (G,) numbers of these."""
        if self.few is not None:
            return self._replace(few=[*map(self.few.__getitem__, order)])
        assert self.many is not None
        table = self.many.table[:, host_tensor(order)]
        return self._replace(many=Sizes(table))


class Sizes(NamedTuple):
    """Numbers of each of many groups, as rows of one table (7, G) int64.

    They are the item, tokens, lines, advance, and the sides: extent in time, height and width.
    """

    table: Tensor

    @property
    def item(self) -> Tensor:
        """The item of each group."""
        return self.table[0]

    @property
    def area(self) -> Tensor:
        """The tokens of each group."""
        return self.table[1]


def make_groups(items: Items) -> Groups:
    """Return the groups of the items, in the order of the items."""
    number = sum(items.groups)
    tall = [*map(mul, items.depth, items.height)]
    num_lines = sum(map(mul, items.groups, tall))
    item = chain.from_iterable(map(repeat, range(len(items.groups)), items.groups))
    if num_lines <= FEW:
        return Groups(items, number, tall, num_lines, [*item], None)
    rows = [range(len(tall)), items.area, tall, items.advance]
    rows += [items.extent, items.height, items.width]
    table = host_tensor(chain.from_iterable(rows)).view(len(rows), -1)
    if number > len(tall) or 0 in items.groups:
        table = table[:, host_tensor(item)]
    return Groups(items, number, tall, num_lines, None, Sizes(table))


def host_tensor(values: Iterable[int]) -> Tensor:
    """Return (n,) int64 of at least one number: faster than `torch.tensor` for many."""
    return torch.frombuffer(array("q", values), dtype=torch.int64)


def text_around(offsets: Sequence[int], lengths: Sequence[int], num_tokens: int) -> Tensor:
    """Return (num_tokens,) bool: the tokens outside of ascending runs, of which none overlap."""
    ends = map(add, offsets, lengths)
    gaps = map(sub, [*offsets, num_tokens], [0, *ends])
    runs = [b"\1" * gap + b"\0" * tokens for gap, tokens in zip(gaps, [*lengths, 0], strict=True)]
    return torch.frombuffer(bytearray(b"".join(runs)), dtype=torch.bool)
