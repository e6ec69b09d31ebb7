"""Padded rows or packed sequences as one stream of tokens on the host's CPU."""

from __future__ import annotations

from operator import sub
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.core.search import search


class Batch(NamedTuple):
    """A batch, row after row, padding included. A row is a padded row or a packed sequence."""

    input_ids: Tensor  # (N,)
    token_types: Tensor | None  # (N,), read instead of the ids
    kept: Tensor | None  # (N,) bool, True = token; None: every one is
    bounds: list[int]  # where each row starts, then N
    width: int | None  # of padded rows

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens with padding."""
        return self.bounds[-1]

    @property
    def num_rows(self) -> int:
        """B, the number of rows."""
        return len(self.bounds) - 1

    def row_of(self, index: Tensor) -> Tensor:
        """Return the row of each token index (n,)."""
        if self.width is not None:
            return index // self.width
        return search(torch.tensor(self.bounds[1:], device="cpu"), index)

    def place_in_row(self, index: Tensor) -> Tensor:
        """Return how many tokens stand before each token index (n,) in its row."""
        if self.width is not None:
            return index % self.width
        return index - torch.tensor(self.bounds, device="cpu")[self.row_of(index)]

    def lengths(self) -> list[int]:
        """Return the number of tokens of each row, padding included."""
        return [*map(sub, self.bounds[1:], self.bounds)]

    def num_kept(self) -> list[int]:
        """Return the number of unmasked tokens of each row."""
        if self.kept is None:
            return self.lengths()
        if self.width is not None:
            counts: list[int] = self.kept.view(-1, self.width).sum(1).tolist()
            return counts
        before = torch.nn.functional.pad(self.kept.cumsum(0), (1, 0))
        lengths: list[int] = before[torch.tensor(self.bounds, device="cpu")].diff().tolist()
        return lengths
