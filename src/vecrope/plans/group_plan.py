"""The plan of a family of the shared rule: an entry for each group, with text in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from operator import add, attrgetter, floordiv, mul, sub
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.items import temporal_offset
from vecrope.core.search import search
from vecrope.forms.eager.items import Items, TimeScale, steps_of_frames
from vecrope.forms.eager.parts import make_parts
from vecrope.forms.eager.write import write_positions
from vecrope.forms.select import plan_kernels, takes_kernels
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.shards import Columns
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

    def _at(self, token_index: Tensor | range, rows: Tensor | None) -> Tensor:
        kernels = self._kernels
        if kernels is None:
            return super()._at(token_index, rows)
        if isinstance(token_index, range):
            shape: tuple[int, ...] = (len(self), len(token_index))
        elif rows is None:
            shape = tuple(token_index.shape)
        else:
            token_index, rows = torch.broadcast_tensors(token_index, rows)  # type: ignore[no-untyped-call]
            shape = tuple(rows.shape)
        positions: Tensor = kernels.expand_rows(self._tables, shape, token_index, rows)
        return positions

    def _step(
        self, computed: Tensor, scheduled: Tensor, num_tokens: int, out: Tensor | None
    ) -> Tensor:
        kernels = self._kernels
        fits = out is None or (out.device == self.device and out.stride(1) == 1)
        if kernels is None or not fits:
            return super()._step(computed, scheduled, num_tokens, out)
        positions: Tensor = kernels.expand_step(self._tables, computed, scheduled, num_tokens, out)
        return positions

    def _expand_columns(self, columns: Columns) -> Tensor:
        kernels = self._kernels
        if kernels is None:
            return super()._expand_columns(columns)
        rows = self._num_input_rows, self._width
        positions: Tensor = kernels.expand_columns(self._tables, *rows, columns, self.padding_value)
        return positions

    def _expand(self, index: Tensor) -> Tensor:
        index = index.to(self.entries.dtype)
        entry = search(self._entry_starts, index) - 1
        start, tokens, base, behind, height, width, before = columns_at(self.entries, entry)
        along = index - start
        inside = along < tokens
        anchor = torch.where(inside, base, behind + along - tokens)
        place = torch.where(inside, along + before, 0).clamp_(min=0)
        row = place // width
        frame = row // height
        time = frame
        if self.time_scale.shape[1]:
            time = temporal_offset(frame, self.time_scale[entry].movedim(-1, 0))
        return torch.stack((time, row - frame * height, place - row * width)).add_(anchor)

    def _expand_all(self) -> Tensor:
        if self._kernels is not None:
            return self._expand_columns(Columns(self._width, 0, self._width, 0)).flatten(1)
        positions = self._written() if self._reads_values and self.num_tokens else None
        return super()._expand_all() if positions is None else positions

    def _written(self) -> Tensor | None:
        """Return all positions as the eager form writes them; None for a plan of no answer."""
        in_group = (self.entries[:, 1] > 0) & (self.entries[:, 6] >= 0)
        start, tokens, base, behind, height, width, before = self.entries[in_group].t().tolist()
        through = whole = [*map(add, before, tokens)]
        if any(before):
            # A part knows the tokens before it; the last one how many there are.
            whole = through.copy()
            for at in range(len(whole) - 2, -1, -1):
                if before[at + 1]:
                    whole[at] = whole[at + 1]
        area = [*map(mul, height, width)]
        depth = [*map(floordiv, whole, area)]
        if [*map(mul, depth, area)] != whole or bool((self.rows[:, 3] == INVALID_DELTA).any()):
            return None
        starts, sizes = self.entries[self.entries[:, 6] < 0, :2].t().tolist()
        advance, between, extent = [*map(sub, behind, base)], None, depth
        if start and self.time_scale.shape[1]:
            factors = self.time_scale[in_group].t()
            extent, between = steps_of_frames(depth, TimeScale(factors.dtype, *factors.tolist()))
        groups = [1] * len(start)
        items = Items(0, groups, depth, height, width, whole, advance, extent, between, None)
        ends = [*map(add, start, tokens)]
        mask, stops = None, [*map(add, starts, sizes)]
        if starts:
            kept = map(sub, [*starts, self.num_tokens], [0, *stops])
            runs = zip(
                map(mul, repeat(b"\1"), kept), map(mul, repeat(b"\0"), [*sizes, 0]), strict=False
            )
            mask = torch.frombuffer(bytearray().join(chain(*runs)), dtype=torch.bool)
        return write_positions(
            make_parts(items, start, ends, range(len(start)), before, (starts, stops)),
            self.row_bounds.tolist(),
            self.dtype,
            mask,
            self.padding_value,
        )

    def _masked_tokens(self) -> Tensor:
        return self.entries[:, 6].neg().clamp_(min=0)

    def _voided_entries(self) -> Tensor:
        starts = self.entries[:, 0]
        tokens = pad(starts[1:], (0, 1), value=self.num_tokens) - starts
        void = torch.ones_like(self.entries)
        void[:, 2:4].fill_(-1)
        for column, values in ((0, starts), (1, tokens), (6, -tokens)):
            void[:, column].copy_(values)
        return void

    def _joined(self, plans: Sequence[GroupPlan], num_entries: int) -> dict[str, Any]:
        scales = [*map(attrgetter("time_scale"), plans)]
        width = self.time_scale.shape[1]
        if sum(map(Tensor.numel, scales)) != num_entries * width:
            raise ValueError("plans must be of one family: some space frames in time, some do not")
        if not width:
            return {"time_scale": self.time_scale.new_empty((num_entries, 0))}
        # The product of a frame's number and its seconds is rounded to their precision.
        precisions = {*map(attrgetter("dtype"), scales)} - {torch.int32}
        if len(precisions) > 1:
            raise ValueError(
                "plans must have seconds of one precision, got "
                f"{sorted(map(str, precisions))}; give second_per_grid_ts of one dtype"
            )
        return {"time_scale": torch.cat(scales)}

    def _selected(self, entry: Tensor, _rows: Tensor) -> dict[str, Any]:
        return {"time_scale": self.time_scale[entry]}

    def _selected_by_kernels(self, rows: Tensor) -> GroupPlan | None:
        kernels = self._kernels
        if kernels is None or not len(rows):
            return None
        taken, entries, scale, num_tokens = kernels.select_entries(
            self.rows, self.entries, self.time_scale, rows
        )
        tables = {"rows": taken, "entries": entries, "time_scale": scale}
        return replace(self, **tables, num_tokens=num_tokens, seq_len=None)
