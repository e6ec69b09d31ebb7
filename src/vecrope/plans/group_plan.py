"""The plan of a family of the shared rule: an entry for each group, with text in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import add, floordiv, mul, sub
from typing import Any

import torch
from torch import Tensor

from vecrope.core.items import temporal_offset
from vecrope.forms.eager.groups import make_parts
from vecrope.forms.eager.items import Items, TimeScale, steps_of_frames
from vecrope.forms.eager.write import write_positions
from vecrope.forms.select import plan_kernels, takes_kernels
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.table import INVALID_DELTA, columns_at, register_plan


@register_plan
@dataclass(frozen=True, eq=False, repr=False)
class GroupPlan(RopeIndexPlan):
    """The groups of a batch, its masked runs and the bounds of its rows, E entries in all.

    What stands behind an entry, up to the next, is text. A group is an image, a separate frame or a
    video that is one block. Where masked tokens interrupt a group it has an entry for each part.
    An entry takes 28 bytes, 36 or 44 where videos are spaced in time, by the precision of the
    seconds.

    Attributes:
        entries: (E, 7) int32, or int64 from 2**30 tokens on: of each entry the index in the batch
            of its first token; its tokens; position of the first token of the group, of a masked
            run the padding value; position of the token behind the entry; height and width, in
            tokens; tokens of the group in its parts before, of a masked run its tokens as a
            negative number, so that none of them has a place in a group.
        time_scale: (E, 2) factors that make the number of a frame in its group its temporal offset,
            as `vecrope.core.items.temporal_offset` does; of integers where there are no videos in
            time; (E, 0) where the number is the offset.
    """

    time_scale: Tensor
    _OF_ENTRIES = ("entries", "time_scale")

    @property
    def num_axes(self) -> int:
        """A, the number of axes: 3."""
        return 3

    def _launch(self, name: str, *arguments: object) -> Any:
        if not len(self) or not takes_kernels(self.rows):
            return None
        tables = self.rows, self.entries, self.time_scale, self.dtype
        return getattr(plan_kernels(), name)(tables, *arguments)

    def _expand_entries(self, index: Tensor, entry: Tensor) -> Tensor:
        start, tokens, base, behind, height, width, before = columns_at(self.entries, entry)
        along = index - start
        over = along - tokens
        inside = over < 0
        anchor = torch.where(inside, base, behind + over)
        place = (along + before).clamp_(min=0) * inside
        row = place // width
        frame = row // height
        time = frame
        if self.time_scale.shape[1]:
            time = temporal_offset(frame, self.time_scale[entry].movedim(-1, 0))
        return torch.stack((time, row - frame * height, place - row * width)).add_(anchor)

    def _written(self) -> Tensor | None:
        """Return all positions as the eager form writes them; None if a group is in pieces."""
        in_group = (self.entries[:, 1] > 0) & (self.entries[:, 6] >= 0)
        start, tokens, base, behind, height, width, before = self.entries[in_group].t().tolist()
        area = [*map(mul, height, width)]
        depth = [*map(floordiv, tokens, area)]
        bounds, _, _, deltas, _ = self.rows.t().tolist()
        if any(before) or [*map(mul, depth, area)] != tokens or INVALID_DELTA in deltas:
            return None
        starts, sizes = self.entries[self.entries[:, 6] < 0, :2].t().tolist()
        advance, extent = [*map(sub, behind, base)], depth
        between: Sequence[Sequence[int]] = [()] * len(start)
        if start and self.time_scale.shape[1]:
            factors = self.time_scale[in_group].t()
            extent, between = steps_of_frames(depth, TimeScale(factors.dtype, *factors.tolist()))
        groups = [1] * len(start)
        items = Items(0, groups, depth, height, width, tokens, advance, extent, between, None)
        ends = [*map(add, start, tokens)]
        masked = starts, [*map(add, starts, sizes)]
        positions = write_positions(
            make_parts(items, start, ends, range(len(start)), before, masked),
            [*bounds, self.num_tokens],
            self.dtype,
            self.padding_value,
        )
        return positions.view(3, self._num_input_rows, self._width)

    @property
    def _invalid(self) -> Sequence[int]:
        # One masked run without an end.
        return 2**31 - 1, -1, -1, 1, 1, 1 - 2**31

    def _masked_tokens(self) -> Tensor:
        return self.entries[:, 6].long().neg().clamp_(min=0)

    def _joined(
        self, plans: Sequence[GroupPlan], _rows: Tensor, num_entries: int
    ) -> dict[str, Any]:
        scales = [plan.time_scale for plan in plans]
        if not any(map(Tensor.numel, scales)):
            return {"time_scale": self.time_scale.new_empty((num_entries, 0))}
        # The product of a frame's number and its seconds is rounded to their precision.
        dtypes = [scale.dtype for scale in scales]
        if len({*dtypes} - {torch.int32}) > 1:
            first, other, *_ = dict.fromkeys(each for each in dtypes if each != torch.int32)
            raise ValueError(
                f"plans must have seconds of one precision, got {first} and, in plan "
                f"{dtypes.index(other)}, {other}; give second_per_grid_ts of one dtype"
            )
        return {"time_scale": torch.cat(scales)}
