"""The plan of a family of the shared rule: an entry for each group, with text in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import add, attrgetter, floordiv, mul, sub
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.items import temporal_offset
from vecrope.core.search import count_begun, search
from vecrope.forms.eager.groups import make_parts
from vecrope.forms.eager.items import Items, TimeScale, steps_of_frames
from vecrope.forms.eager.write import write_positions
from vecrope.forms.select import plan_kernels, takes_kernels
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.table import INVALID_DELTA, WIDE_FROM, columns_at, register_plan

# From so many tokens of a step on, to search the entry of each takes longer than to spread entries.
_SPREAD_FROM = 2**13


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
        return _expand(self.entries, self.time_scale, index, entry)

    def _spread(self, computed: Tensor, scheduled: Tensor, num_tokens: int) -> Tensor | None:
        """Return the positions of a long step; no token's entry is searched for.

        Each entry is told where in the step it begins. The tokens that a row decodes stand behind
        an entry of their own, which follows those of the row.
        """
        start, length, following = self.rows[:, :3].unbind(1)
        if num_tokens < _SPREAD_FROM or not self._reads_values:
            return None
        ahead = computed - length
        # Most steps decode alone. Indices have as many bits as those of entries.
        if int(ahead.amin()) >= 0 or int(ahead.amax()) >= WIDE_FROM:
            return None
        number, each = len(self.entries), torch.arange(len(self), device=self.device)
        own = search(self._entry_starts, start + length - 1) + each
        row = count_begun(own + 1, number + len(self))
        order = torch.arange(len(row), device=self.device) - row
        order.index_copy_(0, own, number + each)
        none, one = torch.zeros_like(start), torch.ones_like(start)
        behind = torch.stack((start + length, none, none, following, one, one, none), 1)
        entries = torch.cat((self.entries, behind.to(self.entries.dtype))).index_select(0, order)
        scale = self.time_scale
        if scale.shape[1]:
            scale = pad(scale, (0, 0, 0, len(self)), value=1).index_select(0, order)
        ends = scheduled.cumsum(0)
        # Behind all rows stand unused entries. Columns that none asks for are of the last row.
        begins = pad(ends - scheduled, (0, 1), value=num_tokens)
        ends = pad(ends[:-1], (0, 2), value=num_tokens)
        shift = begins - pad(start + computed, (0, 1))
        entries[:, 0].add_(shift.index_select(0, row))
        first = torch.clamp(entries[:, 0], begins.index_select(0, row), ends.index_select(0, row))
        index = torch.arange(num_tokens, dtype=entries.dtype, device=self.device)
        return _expand(entries, scale, index, count_begun(first, num_tokens) - 1).to(self.dtype)

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
        advance, between, extent = [*map(sub, behind, base)], None, depth
        if start and self.time_scale.shape[1]:
            factors = self.time_scale[in_group].t()
            extent, between = steps_of_frames(depth, TimeScale(factors.dtype, *factors.tolist()))
        groups = [1] * len(start)
        items = Items(0, groups, depth, height, width, tokens, advance, extent, between, None)
        ends = [*map(add, start, tokens)]
        mask, stops = None, [*map(add, starts, sizes)]
        if starts:
            kept = bytearray(b"\1") * self.num_tokens
            for first, stop in zip(starts, stops, strict=True):
                kept[first:stop] = bytes(stop - first)
            mask = torch.frombuffer(kept, dtype=torch.bool)
        positions = write_positions(
            make_parts(items, start, ends, range(len(start)), before, (starts, stops)),
            [*bounds, self.num_tokens],
            self.dtype,
            mask,
            self.padding_value,
        )
        return positions.view(3, self._num_input_rows, self._width)

    @property
    def _invalid(self) -> Sequence[int]:
        # One masked run without an end.
        return 2**31 - 1, -1, -1, 1, 1, 1 - 2**31

    def _masked_tokens(self) -> Tensor:
        return self.entries[:, 6].long().neg().clamp_(min=0)

    def _joined(self, plans: Sequence[GroupPlan], _rows: Tensor) -> dict[str, Any]:
        scales = [*map(attrgetter("time_scale"), plans)]
        if not any(map(Tensor.numel, scales)):
            num_entries = sum(map(len, scales))
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


def _expand(entries: Tensor, scale: Tensor, index: Tensor, entry: Tensor) -> Tensor:
    """Return the (3, ...) positions of tokens at `index` (...) by the number of each one's entry.

    `entries` and `scale` are as the fields of `GroupPlan`, in the dtype of `index`.
    """
    start, tokens, base, behind, height, width, before = columns_at(entries, entry)
    along = index - start
    over = along - tokens
    inside = over < 0
    anchor = torch.where(inside, base, behind + over)
    place = (along + before).clamp_(min=0) * inside
    row = place // width
    frame = row // height
    time = frame
    if scale.shape[1]:
        time = temporal_offset(frame, scale[entry].movedim(-1, 0))
    return torch.stack((time, row - frame * height, place - row * width)).add_(anchor)
