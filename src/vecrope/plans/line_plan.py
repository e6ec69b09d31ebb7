"""The plan of a family with a rule of its own: blocks of lines, in which axes count or do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.own_rules.glm_image.generated import Tail, concatenate_tails, positions_on_tail
from vecrope.own_rules.layout import STILL
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.table import columns_at, register_plan


@register_plan
@dataclass(frozen=True, eq=False, repr=False)
class LinePlan(RopeIndexPlan):
    """The positions of a batch as blocks of lines, an entry each.

    There is one entry for each stretch of text and each frame, at 28 bytes, 32 with a fourth axis,
    and twice that where positions are fractions; of a thumbnail that is spread over a canvas, one
    or a few a line. Where no value was read, a token is an entry. The one family that generates
    images, glm_image, adds 24 bytes a grid, 24 a row and 24 more.

    Attributes:
        rows: (B, 5), or (B, 8) where rows generate images: which of them, as the rows of
            `vecrope.own_rules.glm_image.generated.Tail`.
        entries: (E, A + 4): of each block the index in the batch of its first token; on each axis,
            the position that it counts from; tokens of a line; tokens that the block has before its
            first, where masked tokens interrupt it; how it counts, as `code_of` says, 0 for masked
            tokens.
        generated: (3, U) int64: the images of such a `Tail`; U is 0 where text is generated.
    """

    generated: Tensor

    @property
    def _tail(self) -> Tail:
        return Tail(self.generated, self.rows[:, 5:].t())

    @property
    def num_axes(self) -> int:
        """A, the number of axes."""
        return self.entries.shape[1] - 4

    def _expand_entries(self, index: Tensor, entry: Tensor) -> Tensor:
        table = self.entries[:, 1:]
        (first,) = columns_at(self.entries[:, :1], entry)
        if table.is_floating_point():  # only an index needs more bits than a position
            table = table.to(self.dtype)
        *bases, width, before, code = columns_at(table, entry)
        place = (index - first).add_(before)
        # Of floats this takes a fraction of the time, and is exact below 2**52.
        row = (place / width).floor_() if place.is_floating_point() else place // width
        row, place = row.to(table.dtype), place.to(table.dtype)
        steps = torch.stack((torch.zeros_like(row), row, place - row * width, place))
        axes = torch.arange(0, 2 * self.num_axes, 2, device=code.device)
        which = (code.long() >> axes.view(-1, *(1,) * code.dim())) & 3
        return torch.stack(bases).add_(steps.gather(0, which))

    def _decoded(self, _rows: Tensor, following: Tensor, index: Tensor) -> Tensor:
        positions = super()._decoded(_rows, following, index)
        if not self.generated.shape[1]:
            return positions
        tail = self._tail
        of_images = positions_on_tail(tail, _rows, index)
        return torch.where(index < tail.rows[1, _rows], of_images, positions)

    @property
    def _invalid(self) -> Sequence[int]:
        return *(-1,) * self.num_axes, 1, 0, 0

    def _masked_tokens(self) -> Tensor:
        starts = self._entry_starts.long()
        tokens = pad(starts[1:], (0, 1), value=self.num_tokens) - starts
        return tokens * (self.entries[:, -1] == 0)

    def _joined(self, plans: Sequence[LinePlan], rows: Tensor, _num_entries: int) -> dict[str, Any]:
        if not self.generated.shape[1]:
            return {}
        tail = concatenate_tails([plan._tail for plan in plans])
        rows[:, 5:] = tail.rows.t()
        return {"generated": tail.images}


def code_of(steps: Sequence[int]) -> int:
    """Return how a block counts as a number: two bits an axis, the first lowest, then a 1.

    `steps` are what `vecrope.own_rules.layout` names; none for masked tokens, whose code is 0.
    """
    return sum(step << 2 * axis for axis, step in enumerate((*steps, 1))) if steps else 0


def entries_of_tokens(positions: Tensor, kept: Tensor | None, index_dtype: torch.dtype) -> Tensor:
    """Return the entries of a plan, one for each token of `positions` (A, N); reads no value.

    `kept` (N,) is True for unmasked tokens, None: every one is. `index_dtype` is that of entries of
    whole numbers.
    """
    if not positions.shape[1]:
        positions, kept = positions.new_zeros((len(positions), 1)), None
    num_axes, num_tokens = positions.shape
    dtype = torch.float64 if positions.is_floating_point() else index_dtype
    code = code_of((STILL,) * num_axes)
    columns = torch.zeros((num_axes + 4, num_tokens), dtype=dtype, device=positions.device)
    columns[0].copy_(torch.arange(num_tokens, dtype=dtype, device=positions.device))
    columns[1:-3].copy_(positions)
    columns[-3].fill_(1)
    columns[-1].fill_(code)
    if kept is not None:
        columns[-1].masked_fill_(~kept, 0)
    return columns.t().contiguous()
