"""The groups of a batch, a number each: lists where there are few, tensors where there are many."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, repeat
from operator import mul
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
    num_lines: int  # lines of all of them
    item: Tensor | None  # (G,) the item of each, where there are many
    few: list[int] | None  # the same, where there are few

    def of(self, values: Sequence[Any]) -> list[Any]:
        """Return the value of each group's item, for few groups."""
        assert self.few is not None
        return [*map(values.__getitem__, self.few)]

    def table(self, *values: Sequence[int]) -> Tensor:
        """Return values of the items for each group, (n, G) int64."""
        if self.few is not None:
            return torch.tensor([self.of(column) for column in values], device="cpu")
        return torch.tensor(values, device="cpu")[:, self.item]

    def rank_bounds(self) -> tuple[Tensor, Tensor]:
        """Return (G,) the ranks of each group's first and last placeholder."""
        if self.few is not None:
            stops = [*accumulate(self.of(self.items.area))]
            ends = [stop - 1 for stop in stops]
            begins, lasts = torch.tensor([[0, *stops[:-1]], ends], device="cpu").unbind()
            return begins, lasts
        area = self.table(self.items.area)[0]
        stops_of = area.cumsum(0)
        return stops_of - area, stops_of - 1

    def reordered(self, order: list[int]) -> Groups:
        """Return the groups in another order, (G,) numbers of these."""
        if self.few is not None:
            return self._replace(few=[*map(self.few.__getitem__, order)])
        assert self.item is not None
        return self._replace(item=self.item[host_tensor(order)])


def make_groups(items: Items) -> Groups:
    """Return the groups of the items, in the order of the items."""
    number = sum(items.groups)
    num_lines = sum(map(mul, items.groups, map(mul, items.depth, items.height)))
    item = chain.from_iterable(map(repeat, range(len(items.groups)), items.groups))
    if num_lines <= FEW:
        return Groups(items, number, num_lines, None, [*item])
    return Groups(items, number, num_lines, host_tensor(item), None)


def host_tensor(values: Iterable[int]) -> Tensor:
    """Return (n,) int64 of at least one number: faster than `torch.tensor` for many."""
    return torch.frombuffer(array("q", values), dtype=torch.int64)
