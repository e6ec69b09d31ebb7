"""What every plan holds: its rows, and how it is moved, copied and described."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from math import prod
from operator import attrgetter
from struct import pack
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils import _pytree as pytree

from vecrope.core.search import count_begun, search, spread_ranges
from vecrope.inputs import may_go_on
from vecrope.plans.shards import Columns
from vecrope.spec import MRopeSpec

if TYPE_CHECKING:
    from typing import Self

INVALID_DELTA = torch.iinfo(torch.int64).min
# From so many tokens on indices have 64 bits.
WIDE_FROM = 2**30
# From so many tokens of a step on, to search the entry of each takes longer than to spread entries.
SPREAD_FROM = 2**13
_CONSTANTS = ("dtype", "padding_value", "family")


@dataclass(frozen=True, eq=False, repr=False)
class PlanTable(ABC):
    """The rows of a batch, the entries that its tokens are computed from, and what holds for all.

    Both tables are of whole numbers, or of float64 where the positions are fractions.

    Attributes:
        rows: (B, 5 or more) of each row: index of its first token in the batch; its tokens, padding
            included; position of the first token of text after it; its `rope_deltas`; the markers
            that are open at its end, as `Runs.open_markers` of `vecrope.forms.eager.runs` counts
            them; and what the class of plans adds.
        entries: (E, columns), the first of which is the index in the batch of each entry's first
            token, ascending; N for entries that are not used.
        num_tokens: N, padding included.
        seq_len: T, or None where the input was packed.
        dtype: of the positions.
        padding_value: the position of masked tokens.
        family: the model type and the convention.
    """

    rows: Tensor
    entries: Tensor
    num_tokens: int
    seq_len: int | None
    dtype: torch.dtype
    padding_value: int
    family: str
    # The tensors that have a row for each entry.
    _OF_ENTRIES: ClassVar[tuple[str, ...]] = ("entries",)

    def __len__(self) -> int:
        return self.rows.shape[0]

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of {self.family}: {len(self)} rows, {self.num_tokens} tokens, "
            f"{self.dtype}, {self.nbytes} bytes on {self.device}>"
        )

    @property
    @abstractmethod
    def num_axes(self) -> int:
        """A, the number of axes: 3 but for families with a rule of their own."""

    @property
    @abstractmethod
    def _invalid(self) -> Sequence[int]:
        """The columns behind the start of entries that put every token at -1."""

    def _expand(self, index: Tensor) -> Tensor:
        """Return the (A, ...) positions of the tokens at `index` (...) of the batch."""
        starts = self._entry_starts
        index = index.to(starts.dtype)
        return self._expand_entries(index, search(starts, index) - 1)

    @abstractmethod
    def _expand_entries(self, index: Tensor, entry: Tensor) -> Tensor:
        """Return the positions of `_expand`, by the number of each token's entry (...), too."""

    @abstractmethod
    def _masked_tokens(self) -> Tensor:
        """Return (E,) int64, how many masked tokens each entry begins with."""

    @abstractmethod
    def _joined(self, plans: Sequence[Any], rows: Tensor, num_entries: int) -> dict[str, Any]:
        """Return the fields of the class's own of several plans, whose `rows` it completes."""

    def _launch(self, _name: str, *_arguments: object) -> Any:
        """Return what a kernel of `vecrope.forms.triton.plans` answers, where it takes the plan."""
        return None

    def _written(self) -> Tensor | None:
        """Return all positions (A, rows of the input, width) in a faster way, if there is one."""
        return None

    def _decoded(self, _rows: Tensor, following: Tensor, index: Tensor) -> Tensor:
        """Return the positions (...) or (A, ...) of tokens by rows and indices behind their ends.

        `following` (...) are the rows' next positions.
        """
        return following + index

    @property
    def _entry_starts(self) -> Tensor:
        starts = self.entries[:, 0]
        return starts.long() if starts.is_floating_point() else starts

    @property
    def num_rows(self) -> int:
        """B, the number of rows or of packed sequences."""
        return len(self)

    @property
    def row_bounds(self) -> Tensor:
        """(B + 1,) int64: where each row starts in the batch, then N."""
        return pad(self.rows[:, 0].long(), (0, 1), value=self.num_tokens)

    @property
    def next_positions(self) -> Tensor:
        """(B,) int64: the position of the first token of text after each row."""
        return self.rows[:, 2]

    @property
    def rope_deltas(self) -> Tensor:
        """(B, 1) int64, or float32 where the positions are fractions: of `get_rope_index`."""
        deltas = self.rows[:, 3:4]
        return deltas.float() if deltas.is_floating_point() else deltas

    @property
    def device(self) -> torch.device:
        """The device of the table, and of what is expanded from it."""
        return self.rows.device

    @property
    def nbytes(self) -> int:
        """The bytes that the plan's tensors hold."""
        return sum(leaf.nbytes for leaf in pytree.tree_leaves(self) if isinstance(leaf, Tensor))

    def to(self, device: torch.device | str) -> Self:
        """Return the plan on a device; the same plan if it is there. To a GPU it does not wait."""
        device = torch.device(device)
        if device == self.device:
            return self
        go_on = may_go_on(device)
        moved: Self = pytree.tree_map_only(
            Tensor, lambda leaf: leaf.to(device, non_blocking=go_on), self
        )
        return moved

    def invalidated(self, invalid: Tensor) -> Self:
        """Return the plan, or where `invalid` (0-d bool) one of -1 throughout."""
        rows, entries = self.rows.clone(), self.entries.clone()
        columns = (*rows[:, 2:4].unbind(1), *entries[:, 1:].unbind(1))
        for column, value in zip(columns, (-(2**31), INVALID_DELTA, *self._invalid), strict=True):
            column.masked_fill_(invalid, value)
        rows[:, 5:].masked_fill_(invalid, 0)
        return replace(self, rows=rows, entries=entries)

    def _select(self, rows: Tensor) -> Self:
        """Return the plan of some rows, (n,) int64 on the plan's device; reads their sizes."""
        if len(rows) and (tables := self._launch("select_entries", rows)):
            taken, entries, time_scale, num_tokens = tables
            own = {"entries": entries, "time_scale": time_scale}
            return replace(self, rows=taken, num_tokens=num_tokens, seq_len=None, **own)
        taken = self.rows.index_select(0, rows)
        start, tokens = taken[:, :2].long().unbind(1)
        first, stop = search(self._entry_starts, torch.stack((start, start + tokens)) - 1)
        number = stop - first
        num_tokens, num_entries = torch.stack((tokens, number)).sum(1).tolist()
        if not num_tokens:
            # No token asks for an entry, but a table has one.
            number[:1], num_entries = 1, min(1, len(rows))
            first = first.clamp(max=len(self.entries) - 1)
        row, entry = spread_ranges(first, number, num_entries)
        begin = tokens.cumsum(0) - tokens
        own = {name: getattr(self, name).index_select(0, entry) for name in self._OF_ENTRIES}
        own["entries"][:, 0].add_((begin - start).index_select(0, row))
        taken[:, 0].copy_(begin)
        return replace(self, rows=taken, num_tokens=num_tokens, seq_len=None, **own)

    @property
    def _reads_values(self) -> bool:
        """Whether a value of the plan can be read without a wait."""
        rows = self.rows
        return rows.is_cpu and type(rows) is Tensor and not torch.compiler.is_compiling()

    @property
    def _width(self) -> int:
        """The number of columns of the input."""
        return self.num_tokens if self.seq_len is None else self.seq_len

    @property
    def _num_input_rows(self) -> int:
        """Rows of the input, each of which may hold several rows of the plan; 1 if packed."""
        if not self.seq_len:
            return 1 if self.seq_len is None else len(self)
        return self.num_tokens // self.seq_len

    def _at(self, token_index: Tensor | range, rows: Tensor | None) -> Tensor:
        """Return the (A, ...) positions of tokens by indices of 64 bits in their rows.

        A range is of every row. Without `rows` the first dimension is the rows.
        """
        launched: Tensor | None = self._launch("expand_rows", token_index, rows)
        if launched is not None:
            return launched
        if isinstance(token_index, range):
            first, stop = token_index.start, token_index.stop
            token_index = torch.arange(first, stop, device=self.device).expand(len(self), -1)
        if rows is None:
            rows = torch.arange(len(self), device=self.device)
            rows = rows.view(-1, *(1,) * (token_index.dim() - 1))
        begin, length, following = columns_at(self.rows[:, :3], rows)
        beyond = token_index - length
        decoded = self._decoded(rows, following, beyond).to(self.dtype)
        # Most steps of an engine decode.
        if self._reads_values and not bool((beyond < 0).any()):
            return decoded.expand(self.num_axes, *beyond.shape).clone()
        # Behind its row's end an index lies in another row or in none, of which nothing is taken.
        return torch.where(beyond < 0, self._expand(begin + token_index).to(self.dtype), decoded)

    def _step(
        self, computed: Tensor, scheduled: Tensor, num_tokens: int, out: Tensor | None
    ) -> Tensor:
        """Return the positions (A, num_tokens) of a step, in the first columns of `out`."""
        if out is None or (out.device == self.device and out.stride(1) == 1):
            step = computed, scheduled, num_tokens, out
            launched: Tensor | None = self._launch("expand_step", *step)
            if launched is not None:
                return launched
        computed, scheduled = computed.long(), scheduled.long()
        ends = scheduled.cumsum(0)
        positions = None
        if num_tokens >= SPREAD_FROM and self._reads_values:
            ahead = computed - self.rows[:, 1]
            # Most steps decode alone. Indices have as many bits as those of entries.
            if int(ahead.amin()) < 0 and int(ahead.amax()) < WIDE_FROM:
                positions = self._spread(computed, ends - scheduled, ends, num_tokens)
        if positions is None:
            # A row begins where the one before it ends; what is behind all is of the last.
            rows = count_begun(ends[:-1], num_tokens)
            index = (computed - ends + scheduled).index_select(0, rows)
            positions = self._at(index + torch.arange(num_tokens, device=self.device), rows)
        return positions if out is None else out[:, :num_tokens].copy_(positions)

    def _spread(self, computed: Tensor, begins: Tensor, ends: Tensor, num_tokens: int) -> Tensor:
        """Return the positions of a step where rows begin and end; searches for no token's entry.

        Each entry is told where in the step it begins. What rows decode is their last tokens there.
        """
        start, length = self.rows[:, :2].long().unbind(1)
        ends[-1].fill_(num_tokens)
        shift = begins - start - computed
        row = search(start, self._entry_starts) - 1
        entries = self.entries.clone()
        entries[:, 0].add_(shift.index_select(0, row))
        first = torch.clamp(entries[:, 0], begins.index_select(0, row), ends.index_select(0, row))
        entry = count_begun(first, num_tokens) - 1
        index = torch.arange(num_tokens, dtype=self._entry_starts.dtype, device=self.device)
        positions = replace(self, entries=entries)._expand_entries(index, entry).to(self.dtype)
        behind = start + length + shift
        first = torch.clamp(behind, begins, ends)
        decoded = ends - first
        rows, place = spread_ranges(first, decoded, int(decoded.sum()))
        beyond = place - behind.index_select(0, rows)
        decoded = self._decoded(rows, self.rows[:, 2].index_select(0, rows), beyond)
        decoded = decoded.to(self.dtype).expand(self.num_axes, -1)
        return positions.index_copy_(1, place, decoded)

    def _at_columns(self, columns: Columns, *, text_positions: bool) -> Tensor:
        """Return the positions (A, rows of the input, n) of columns, or (A, n) of packed input.

        Columns beyond the width are padding. With `text_positions` there is one axis in front.
        """
        num_rows, width, value = self._num_input_rows, self._width, self.padding_value
        positions: Tensor | None = self._launch("expand_columns", num_rows, width, columns, value)
        is_whole = not columns.first and columns.length >= width
        if positions is None and is_whole and self._reads_values and self.num_tokens:
            positions = self._written()
            if positions is not None and columns.number > width:
                positions = pad(positions, (0, columns.number - width), value=value)
        if positions is None or text_positions:
            column = columns.indices(self.device)
            rows = torch.arange(num_rows, device=self.device).unsqueeze(1)
            # The columns of padding lie where the next row does, of which nothing is taken.
            index, inside = rows * width + column, column < width
            if positions is None:
                positions = torch.where(inside, self._expand(index), value)
            positions = positions.to(self.dtype)
            if text_positions:
                text = torch.where(inside, self._text_positions(index), 0).to(self.dtype)
                positions = torch.cat((text[None], positions))
        return positions[:, 0] if self.seq_len is None else positions

    def _text_positions(self, index: Tensor) -> Tensor:
        """Return how many unmasked tokens of its row stand before each token, 0 at masked ones."""
        starts, tokens, begins = self._entry_starts, self._masked_tokens(), self.row_bounds[:-1]
        masked, ends = pad(tokens.cumsum(0), (1, 0)), starts + tokens
        begin = begins[search(begins, index) - 1]
        entry = search(starts, index)
        # Entries before the row are those that start before its first token.
        before = masked[entry] - masked[search(starts, begin - 1)]
        return torch.where(index < ends[entry - 1], 0, index - begin - before)


def fields_of(
    shape: Sequence[int], spec: MRopeSpec, dtype: torch.dtype
) -> tuple[int, int | None, torch.dtype, int, str]:
    """Return what a plan of `input_ids` of a shape, (B, T) or (N,), has behind its two tables."""
    seq_len = shape[1] if len(shape) == 2 else None
    return prod(shape), seq_len, dtype, spec.padding_value, family_of(spec)


def index_dtype(num_tokens: int) -> torch.dtype:
    """Return the dtype of whole numbers in the entries of so many tokens."""
    return torch.int32 if num_tokens < WIDE_FROM else torch.int64


def family_of(spec: MRopeSpec) -> str:
    """Return what plans call a family under a convention."""
    return f"{spec.model_type} ({spec.convention})"


def columns_at(table: Tensor, index: Tensor) -> list[Tensor]:
    """Return the columns of the rows `index` (...) of a table, each of that shape."""
    # Gathered by itself each is contiguous: arithmetic on strided ones takes several times as long.
    flat = index if index.dim() == 1 else index.reshape(-1)
    columns = [column.index_select(0, flat) for column in table.unbind(1)]
    return columns if index.dim() == 1 else [column.view(index.shape) for column in columns]


_DTYPES = {"f": torch.float32, "i": torch.int32, "q": torch.int64, "d": torch.float64}


def host_table(code: str, rows: Sequence[Sequence[float]]) -> Tensor:
    """Return rows of numbers, at least one, as a tensor: `code` is a format of `struct`."""
    packed = bytearray(pack(f"{len(rows) * len(rows[0])}{code}", *chain.from_iterable(rows)))
    return torch.frombuffer(packed, dtype=_DTYPES[code]).view(len(rows), -1)


_PlanClass = TypeVar("_PlanClass", bound=type[PlanTable])


def register_plan(plan_class: _PlanClass) -> _PlanClass:
    """Register a class of plans as a pytree, whose leaves are its tensors and sizes."""
    leaves = [field.name for field in fields(plan_class) if field.name not in _CONSTANTS]
    keys = [*map(pytree.GetAttrKey, leaves)]
    values_of, context_of = attrgetter(*leaves), attrgetter(*_CONSTANTS)
    pytree.register_pytree_node(
        plan_class,
        lambda plan: ([*values_of(plan)], context_of(plan)),
        lambda values, context: plan_class(
            **dict(zip((*leaves, *_CONSTANTS), (*values, *context), strict=True))
        ),
        serialized_type_name=f"vecrope.{plan_class.__name__}",
        to_dumpable_context=lambda context: [str(context[0]).removeprefix("torch."), *context[1:]],
        from_dumpable_context=lambda context: (getattr(torch, context[0]), *context[1:]),
        flatten_with_keys_fn=lambda plan: (
            [*zip(keys, values_of(plan), strict=True)],
            context_of(plan),
        ),
    )
    # So that `torch.load` and `torch.export.load` take plans without being told to trust the file.
    torch.serialization.add_safe_globals([plan_class])
    return plan_class
