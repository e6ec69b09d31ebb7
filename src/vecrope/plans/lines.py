"""Any positions as lines, along which every axis stands still or counts up by one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.modality import compact
from vecrope.core.search import search


class Lines(NamedTuple):
    """S lines of consecutive tokens, none of which goes on into another row."""

    starts: Tensor  # (S,) ascending token indices; N for the unused rows of a static table
    bases: Tensor  # (A, S) position of the first token, in the dtype of the positions
    # (A + 1, S) int8: by how much each axis counts up from token to token, 0 or 1; and in the last
    # row 1 if the tokens are unmasked.
    slopes: Tensor


def lines_of(positions: Tensor, kept: Tensor | None, row_bounds: Tensor, *, exact: bool) -> Lines:
    """Cut positions (A, N), of at least one token, into lines.

    Args:
        positions: whole numbers or fractions.
        kept: (N,) bool, True = token; None: every one is.
        row_bounds: (B + 1,) where each row starts, then N.
        exact: whether to make as many lines as there are, which reads values, or N.
    """
    num_tokens = positions.shape[1]
    # Of fractions in float64, in which the difference of two float32 is exact.
    wide = positions.double() if positions.is_floating_point() else positions
    steps = wide.diff(dim=1)
    goes_on = ((steps == 0) | (steps == 1)).all(0)
    if kept is None:
        kept = torch.ones(num_tokens, dtype=torch.bool, device=positions.device)
    goes_on &= kept[1:] == kept[:-1]
    broken = pad(~goes_on, (1, 0), value=True)
    first = row_bounds[:-1].clamp(max=num_tokens - 1).long()
    broken = broken.index_fill(0, first, True)
    # The second token of a line says by how much it counts up; a third that differs starts another.
    turns = pad((steps[:, 1:] != steps[:, :-1]).any(0), (2, 0))[:num_tokens]
    begins = broken | (turns & ~pad(broken[:-1], (1, 0)))
    starts, _ = compact(begins, None if exact else num_tokens, row_bounds.dtype)
    at = starts.clamp(max=num_tokens - 1)
    # A line of one token has none: behind it another begins, or it is the last, which is itself.
    second = (at + 1).clamp(max=num_tokens - 1)
    slopes = (wide[:, second] - wide[:, at]).masked_fill(begins[second], 0)
    slopes = torch.cat((slopes, kept[at].unsqueeze(0)))
    return Lines(starts, positions[:, at], slopes.to(torch.int8))


def positions_on(lines: Lines, index: Tensor) -> Tensor:
    """Return the (A, ...) positions of the tokens at `index` (...)."""
    line = search(lines.starts, index) - 1
    along = index - lines.starts[line]
    return lines.bases[:, line] + lines.slopes[:-1, line] * along
