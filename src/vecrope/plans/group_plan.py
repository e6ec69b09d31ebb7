"""The plan of a family of the shared rule: an entry for each group, with text in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vecrope.core.items import temporal_offset
from vecrope.forms.select import plan_kernels, takes_kernels
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.shards import Columns
from vecrope.plans.table import columns_at, register_plan


@register_plan
@dataclass(frozen=True, eq=False, repr=False)
class GroupPlan(RopeIndexPlan):
    """The groups of a batch, its masked runs and the bounds of its rows, E entries in all.

    What stands behind an entry, up to the next, is text. A group is an image, a separate frame or a
    video that is one block. Where masked tokens interrupt a group it has an entry for each part.
    An entry takes 28 bytes, 36 or 44 where videos are spaced in time, by the precision of the
    seconds.

    Attributes:
        entries: (E, 7) int32, or int64 from 2**30 tokens on: of each entry

            - index in the batch of its first token;
            - its tokens;
            - position of the first token of the group, of a masked run the padding value;
            - position of the token behind the entry;
            - height and width, in tokens;
            - tokens of the group in its parts before; of a masked run, its tokens as a negative
              number, so that none of them has a place in a group.
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

    @property
    def _kernels(self) -> ModuleType | None:
        """`vecrope.forms.triton.plans`, where it can take the plan's tensors."""
        return plan_kernels() if len(self) and takes_kernels(self.rows) else None

    @property
    def _tables(self) -> tuple[Any, ...]:
        return self.rows, self.entries, self.time_scale, self.dtype

    def _at(
        self, token_index: Tensor | range, rows: Tensor | None, entry: Tensor | None = None
    ) -> Tensor:
        kernels = self._kernels
        if kernels is None:
            return super()._at(token_index, rows, entry)
        positions: Tensor = kernels.expand_rows(self._tables, token_index, rows)
        return positions

    def _step(
        self, computed: Tensor, scheduled: Tensor, num_tokens: int, out: Tensor | None
    ) -> Tensor:
        kernels = self._kernels
        if kernels and (out is None or (out.device == self.device and out.stride(1) == 1)):
            positions: Tensor = kernels.expand_step(
                self._tables, computed, scheduled, num_tokens, out
            )
            return positions
        return super()._step(computed, scheduled, num_tokens, out)

    def _at_once(self, columns: Columns) -> Tensor | None:
        kernels, rows, width = self._kernels, self._num_input_rows, self._width
        if kernels is None:
            return None
        tables, value = self._tables, self.padding_value
        positions: Tensor = kernels.expand_columns(tables, rows, width, columns, value)
        return positions

    def _behind(self, entry: Tensor, index: Tensor) -> Tensor:
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

    @property
    def _invalid(self) -> Sequence[int]:
        # One masked run without an end.
        return 2**31 - 1, -1, -1, 1, 1, 1 - 2**31

    def _masked_tokens(self) -> Tensor:
        return self.entries[:, 6].long().neg().clamp_(min=0)

    def _joined(self, plans: Sequence[GroupPlan], num_entries: int) -> dict[str, Any]:
        scales = [*map(attrgetter("time_scale"), plans)]
        if not any(map(Tensor.numel, scales)):
            return {"time_scale": self.time_scale.new_empty((num_entries, 0))}
        # The product of a frame's number and its seconds is rounded to their precision.
        dtypes = [*map(attrgetter("dtype"), scales)]
        first, *others = dict.fromkeys(dtype for dtype in dtypes if dtype != torch.int32) or [None]
        if others:
            raise ValueError(
                f"plans must have seconds of one precision, got {first} and, in plan "
                f"{dtypes.index(others[0])}, {others[0]}; give second_per_grid_ts of one dtype"
            )
        return {"time_scale": torch.cat(scales)}

    def _select(self, rows: Tensor) -> GroupPlan:
        kernels = self._kernels
        if kernels is None or not len(rows):
            return super()._select(rows)
        taken, entries, scale, num_tokens = kernels.select_entries(self._tables, rows)
        tables = {"rows": taken, "entries": entries, "time_scale": scale}
        return replace(self, **tables, num_tokens=num_tokens, seq_len=None)
