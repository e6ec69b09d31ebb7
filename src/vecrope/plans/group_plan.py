"""The plan of a family of the shared rule: an entry for each group, with text in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.items import temporal_offset
from vecrope.core.search import search, spread
from vecrope.forms.select import expansion, plan_tables, takes_kernels
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.rows import add_begins
from vecrope.plans.shards import Columns
from vecrope.plans.table import register_plan


@register_plan
@dataclass(frozen=True, eq=False, repr=False)
class GroupPlan(RopeIndexPlan):
    """The groups of a batch, its masked runs and the bounds of its rows, E entries in all.

    What stands behind an entry, up to the next, is text. A group is an image, a separate frame or a
    video that is one block. Where masked tokens interrupt a group it has an entry for each part.
    An entry takes 28 bytes, 36 or 44 where a family spaces frames in time, by the precision of the
    seconds.

    Attributes:
        entries: (E, 7) int32, or int64 from 2**30 tokens on: of each entry

            - index in the batch of its first token, ascending; N for entries that are not used;
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

    entries: Tensor
    time_scale: Tensor

    @property
    def num_axes(self) -> int:
        """A, the number of axes: 3."""
        return 3

    @property
    def _entry_starts(self) -> Tensor:
        return self.entries[:, 0]

    @property
    def _kernels(self) -> ModuleType | None:
        """`vecrope.forms.triton.expand`, where it can take the plan's tensors."""
        return expansion() if len(self) and takes_kernels(self.rows) else None

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
        return self._locate(search(self._entry_starts, index) - 1, index)

    def _locate(self, entry: Tensor, index: Tensor) -> Tensor:
        """Return the (3, ...) positions of the tokens at `index` (...), of known entries."""
        start, tokens, base, behind, height, width, before = self.entries[entry].unbind(-1)
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
        """Return the (3, N) positions of all tokens, where values can be read without a wait.

        On a line of a group, and on text, each axis stands still or counts up by one. So positions
        are one cumulative sum of these steps, corrected at the first token of each line and behind
        each entry, which takes a fraction of the time of a division a token.
        """
        if self._kernels is not None:
            return self._expand_columns(Columns(self._width, 0, self._width, 0)).flatten(1)
        if not self._reads_values or not self.num_tokens:
            return super()._expand_all()
        start, tokens, _, _, _, width, before = self.entries.unbind(1)
        end, masked = start + tokens, before < 0
        first_line = before // width
        num_lines = (before + tokens - 1) // width - first_line + 1
        # The pieces of an entry are its lines and the text behind.
        pieces = num_lines.masked_fill_(masked, 1).long() + 1
        ends = pieces.cumsum(0)
        entry = spread(pieces, int(ends[-1]))
        line = torch.arange(entry.shape[0], device="cpu") - (ends - pieces)[entry]
        line_start = (start - before)[entry] + (first_line[entry] + line) * width[entry]
        text = line == num_lines[entry]
        at = torch.where(text, end[entry], torch.maximum(start[entry], line_start))
        counts = torch.stack((text, text, ~masked[entry] | text)).long()
        # Of a piece positions are a constant and the token's index, or the constant alone.
        constant = self._locate(entry, at) - counts * at
        change = constant.diff(dim=1, prepend=constant.new_zeros((3, 1)))
        change += counts.diff(dim=1, prepend=counts.new_zeros((3, 1))) * (at - 1)
        # What begins behind the last token changes nothing.
        change *= at < self.num_tokens
        positions = torch.empty((3, self.num_tokens), dtype=self.dtype, device="cpu")
        torch.sub(1, self._covered(start, end), out=positions[0])
        positions[1].copy_(positions[0])
        if bool(masked.any()):
            torch.sub(1, self._covered(start[masked], end[masked]), out=positions[2])
        else:
            positions[2].fill_(1)
        positions.index_add_(1, at.clamp(max=self.num_tokens - 1), change.to(self.dtype))
        return positions.cumsum_(1)

    def _covered(self, start: Tensor, end: Tensor) -> Tensor:
        """Return (N,) int8: 1 from each `start` to before its `end`, which do not overlap."""
        edges = torch.zeros(self.num_tokens + 1, dtype=torch.int8, device="cpu")
        ones = torch.ones_like(start, dtype=torch.int8)
        edges.index_add_(0, start, ones)
        edges.index_add_(0, end, ones, alpha=-1)
        return edges[:-1].cumsum(0, dtype=torch.int8)

    def _masked_ends(self) -> Tensor:
        tokens, before = self.entries[:, 1], self.entries[:, 6]
        return torch.where(before < 0, self._entry_starts + tokens, self._entry_starts)

    def voided(self, invalid: Tensor) -> GroupPlan:
        """Return the plan, or where `invalid` (0-d bool) one whose every entry is a masked run."""
        starts, *columns = self.entries.unbind(1)
        tokens = pad(starts[1:], (0, 1), value=self.num_tokens) - starts
        void = (tokens, *(torch.full_like(tokens, value) for value in (-1, -1, 1, 1)), -tokens)
        columns = [torch.where(invalid, *both) for both in zip(void, columns, strict=True)]
        entries = torch.stack((starts, *columns), 1)
        return replace(self, rows=self._rows_voided(invalid), entries=entries)

    def _joined(
        self, plans: Sequence[GroupPlan], begins: Sequence[int], *, wide: bool
    ) -> GroupPlan:
        tables, scales = zip(*map(attrgetter("entries", "time_scale"), plans), strict=True)
        if len({scale.shape[1] for scale in scales}) > 1:
            raise ValueError("plans must be of one family: some space frames in time, some do not")
        scale = self.time_scale
        if scale.shape[1]:
            # The product of a frame's number and its seconds is rounded to their precision.
            precisions = {scale.dtype for scale in scales if scale.is_floating_point()}
            if len(precisions) > 1:
                raise ValueError(
                    "plans must have seconds of one precision, got "
                    f"{sorted(map(str, precisions))}; give second_per_grid_ts of one dtype"
                )
            scale = torch.cat(scales)
        entries = torch.cat(tables)
        entries = entries.long() if wide else entries
        add_begins(entries[:, 0], tables, begins)
        if not scale.shape[1]:
            scale = scale.new_empty((entries.shape[0], 0))
        return replace(self, entries=entries, time_scale=scale)

    def _selected_by_kernels(self, rows: Tensor) -> GroupPlan | None:
        if self._kernels is None or not len(rows):
            return None
        taken, entries, scale, num_tokens = plan_tables().select_entries(
            self.rows, self.entries, self.time_scale, rows
        )
        tables = {"rows": taken, "entries": entries, "time_scale": scale}
        return replace(self, **tables, num_tokens=num_tokens, seq_len=None)

    def _gathered(self, entry: Tensor, _: Tensor, shift: Tensor) -> GroupPlan:
        entries = self.entries[entry]
        entries[:, 0] += shift
        return replace(self, entries=entries, time_scale=self.time_scale[entry])
