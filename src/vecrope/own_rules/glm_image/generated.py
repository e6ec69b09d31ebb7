"""The positions of what follows prompts, where that is images and not text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.core.search import search, spread


class Tail(NamedTuple):
    """The images that are generated after the prompts of B rows, one stream of all their tokens."""

    # (3, U) int64, ascending: index in the stream of each image's first token, its position, and
    # the image's columns. Images without a token stand for grids that generate nothing; one more of
    # them ends the stream.
    images: Tensor
    # (3, B) int64: index in the stream of each row's first token, how many tokens the row
    # generates, and the position of the last, which is the end and not in the stream.
    rows: Tensor


def positions_on_tail(tail: Tail, rows: Tensor, index: Tensor) -> Tensor:
    """Return the (3, ...) positions of the tokens at `index` of what `rows` generate.

    Beyond a row's last token they are those of the last.
    """
    begin, count, end = tail.rows[:, rows].unbind()
    place = begin + index.clamp(min=0)
    image = search(tail.images[0], place) - 1
    first, base, width = tail.images[:, image].unbind()
    along = place - first
    line = along // width
    cells = torch.stack((base, base + line, base + along - line * width))
    return torch.where(index < count - 1, cells, end)


def concatenate_tails(tails: Sequence[Tail]) -> Tail:
    """Return the tail of the rows of several."""
    images, rows = (torch.cat(parts, 1) for parts in zip(*tails, strict=True))
    totals = torch.stack([tail.images[0, -1] for tail in tails])
    shift = totals.cumsum(0) - totals
    for values, parts in zip((images, rows), zip(*tails, strict=True), strict=True):
        sizes = torch.tensor([part.shape[1] for part in parts], device="cpu").to(shift.device)
        values[0] += shift[spread(sizes, values.shape[1])]
    return Tail(images, rows)
