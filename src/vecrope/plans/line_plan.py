"""The plan of a family with a rule of its own: lines, along which every axis counts up or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.own_rules.glm_image.generated import Tail, concatenate_tails, positions_on_tail
from vecrope.plans.lines import Lines, positions_on
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.rows import add_begins
from vecrope.plans.table import register_plan


@register_plan
@dataclass(frozen=True, eq=False, repr=False)
class LinePlan(RopeIndexPlan):
    """The positions of a batch as lines, S in all.

    There are at most one or two lines for each of a grid, at 20 bytes, or 25 with a fourth axis.
    The one family that generates images, glm_image, adds 24 bytes a grid, 24 a row and 24 more.

    Attributes:
        starts: (S,) ascending index, in the batch, of each line's first token; N for lines that are
            not used.
        bases: (A, S) the position of that token, in the dtype of the positions.
        slopes: (A + 1, S) int8: by how much each axis counts up on a line, 0 or 1, and 1 for
            unmasked tokens.
        generated: (3, U) int64: the images that are generated behind the rows, as
            `vecrope.own_rules.glm_image.generated.Tail` has them; U is 0 where text is.
        generated_rows: (3, B) int64: which of them each row generates, likewise; or (3, 0).
    """

    starts: Tensor
    bases: Tensor
    slopes: Tensor
    generated: Tensor
    generated_rows: Tensor

    @property
    def num_axes(self) -> int:
        """A, the number of axes."""
        return self.bases.shape[0]

    @property
    def _entry_starts(self) -> Tensor:
        return self.starts

    def _expand(self, index: Tensor) -> Tensor:
        return positions_on(
            Lines(self.starts, self.bases, self.slopes), index.to(self.starts.dtype)
        )

    def _decoded(self, _rows: Tensor, following: Tensor, index: Tensor) -> Tensor:
        positions = super()._decoded(_rows, following, index)
        if not self.generated.shape[1]:
            return positions
        tail = Tail(self.generated, self.generated_rows)
        of_images = positions_on_tail(tail, _rows, index)
        return torch.where(index < tail.rows[1, _rows], of_images, positions)

    def _masked_ends(self) -> Tensor:
        ends = pad(self.starts[1:], (0, 1), value=self.num_tokens)
        return torch.where(self.slopes[-1] == 0, ends, self.starts)

    def voided(self, invalid: Tensor) -> LinePlan:
        """Return the plan, or where `invalid` (0-d bool) one that stands still at -1."""
        return replace(
            self,
            rows=self._rows_voided(invalid),
            bases=torch.where(invalid, -1, self.bases),
            slopes=torch.where(invalid, 0, self.slopes),
            generated_rows=torch.where(invalid, 0, self.generated_rows),
        )

    def _joined(self, plans: Sequence[LinePlan], begins: Sequence[int], *, wide: bool) -> LinePlan:
        if len({(plan.num_axes, plan.generated.shape[1] > 0) for plan in plans}) > 1:
            raise ValueError("plans must be of one family: some have other axes or generate images")
        tail = Tail(self.generated, self.generated_rows)
        if self.generated.shape[1]:
            tail = concatenate_tails([Tail(plan.generated, plan.generated_rows) for plan in plans])
        tables = [plan.starts for plan in plans]
        starts = torch.cat(tables)
        starts = starts.long() if wide else starts
        add_begins(starts, tables, begins)
        return replace(
            self,
            starts=starts,
            bases=torch.cat([plan.bases for plan in plans], 1),
            slopes=torch.cat([plan.slopes for plan in plans], 1),
            generated=tail.images,
            generated_rows=tail.rows,
        )

    def _gathered(self, entry: Tensor, rows: Tensor, shift: Tensor) -> LinePlan:
        generated_rows = self.generated_rows
        if generated_rows.shape[1]:
            generated_rows = generated_rows[:, rows]
        return replace(
            self,
            starts=self.starts[entry].add_(shift),
            bases=self.bases[:, entry],
            slopes=self.slopes[:, entry],
            generated_rows=generated_rows,
        )


def no_images(device: torch.device) -> Tail:
    """Return the tail of rows behind which text is generated."""
    none = torch.empty((3, 0), dtype=torch.int64, device=device)
    return Tail(none, none)
