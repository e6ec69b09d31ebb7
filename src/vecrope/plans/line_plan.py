"""The plan of a family with a rule of its own: lines, along which every axis counts up or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.modality import compact
from vecrope.core.search import search
from vecrope.own_rules.glm_image.generated import Tail, concatenate_tails, positions_on_tail
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.table import columns_at, register_plan


@register_plan
@dataclass(frozen=True, eq=False, repr=False)
class LinePlan(RopeIndexPlan):
    """The positions of a batch as lines, an entry each.

    There are at most one or two lines for each of a grid, at 20 bytes, 24 with a fourth axis, and
    twice that where positions are fractions. The one family that generates images, glm_image, adds
    24 bytes a grid, 24 a row and 24 more.

    Attributes:
        entries: (E, A + 2): of each line

            - index in the batch of its first token;
            - the position of that token on each axis;
            - a bit for each axis, the first lowest, 1 where it counts up from token to token and 0
              where it stands still; and one more, 1 where the tokens are unmasked.
        generated: (3, U) int64: the images that are generated behind the rows, as
            `vecrope.own_rules.glm_image.generated.Tail` has them; U is 0 where text is.
        generated_rows: (3, B) int64: which of them each row generates, likewise; or (3, 0).
    """

    generated: Tensor
    generated_rows: Tensor

    @property
    def num_axes(self) -> int:
        """A, the number of axes."""
        return self.entries.shape[1] - 2

    def _expand(self, index: Tensor) -> Tensor:
        starts = self._entry_starts
        index = index.to(starts.dtype)
        first, *bases, bits = columns_at(self.entries, search(starts, index) - 1)
        return torch.stack(bases) + self._bits(bits)[:-1] * (index - first)

    def _bits(self, bits: Tensor) -> Tensor:
        """Return (A + 1, ...) the bits of each of a tensor (...) of lines' last column."""
        shape = (self.num_axes + 1,) + (1,) * bits.dim()
        axes = torch.arange(self.num_axes + 1, device=bits.device).view(shape)
        return (bits.long() >> axes) & 1

    def _decoded(self, _rows: Tensor, following: Tensor, index: Tensor) -> Tensor:
        positions = super()._decoded(_rows, following, index)
        if not self.generated.shape[1]:
            return positions
        tail = Tail(self.generated, self.generated_rows)
        of_images = positions_on_tail(tail, _rows, index)
        return torch.where(index < tail.rows[1, _rows], of_images, positions)

    @property
    def _invalid(self) -> Sequence[int]:
        return *(-1,) * self.num_axes, 0

    def _masked_tokens(self) -> Tensor:
        starts = self._entry_starts.long()
        tokens = pad(starts[1:], (0, 1), value=self.num_tokens) - starts
        return tokens * (1 - self._bits(self.entries[:, -1])[-1])

    def voided(self, invalid: Tensor) -> LinePlan:
        """Return the plan, or where `invalid` (0-d bool) one that stands still at -1."""
        plan = super().voided(invalid)
        return replace(plan, generated_rows=torch.where(invalid, 0, self.generated_rows))

    def _joined(self, plans: Sequence[LinePlan], _num_entries: int) -> dict[str, Any]:
        if not self.generated.shape[1]:
            return {}
        tail = concatenate_tails([Tail(plan.generated, plan.generated_rows) for plan in plans])
        return {"generated": tail.images, "generated_rows": tail.rows}

    def _select(self, rows: Tensor) -> LinePlan:
        plan = super()._select(rows)
        if not self.generated.shape[1]:
            return plan
        return replace(plan, generated_rows=self.generated_rows[:, rows])


def lines_of(
    positions: Tensor,
    kept: Tensor | None,
    row_bounds: Tensor,
    index_dtype: torch.dtype,
    *,
    exact: bool,
) -> Tensor:
    """Cut positions (A, N) into lines, and return them as the entries of a plan.

    Args:
        positions: whole numbers or fractions.
        kept: (N,) bool, True = token; None: every one is.
        row_bounds: (B + 1,) where each row starts, then N.
        index_dtype: of the entries, if the positions are whole numbers.
        exact: whether to make as many lines as there are, which reads values, or N.
    """
    num_axes, num_tokens = positions.shape
    # Fractions in float64, in which the difference of two float32 is exact.
    wide = positions.double() if positions.is_floating_point() else positions
    dtype = wide.dtype if positions.is_floating_point() else index_dtype
    if not num_tokens:
        none = torch.zeros((1, num_axes + 2), dtype=dtype, device=positions.device)
        none[:, -1].fill_(1 << num_axes)
        return none
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
    bits = kept[at].long() << num_axes
    for axis, slope in enumerate(slopes.long()):
        bits = bits + (slope << axis)
    return torch.stack((starts, *wide[:, at], bits)).t().to(dtype)
