"""The positions of a batch as a plan: a few numbers a segment, expanded where they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils import _pytree as pytree

from vecrope.own_rules.glm_image.generated import Tail, concatenate_tails, positions_on_tail
from vecrope.plans.lines import Lines, positions_on
from vecrope.plans.shards import ShardLayout, shard_indices
from vecrope.positions import Layout, all_positions, positions_at
from vecrope.whole import positions_of_table


@dataclass(frozen=True, eq=False)
class RopeIndexPlan:
    """The segment table of a batch, and what is needed to expand it to positions.

    `vecrope.plan_rope_index` and `vecrope.plan_from_placeholders` make plans. A plan is a pytree of
    tensors: it passes through `torch.compile` and `torch.export`, and `to` moves it. It takes
    28 bytes a segment (36 or 44 where a family spaces videos in time, by the precision of the
    seconds), 20 a row and 4 more. From 2**30 tokens on its indices have 64 bits. The plan of a
    family with a rule of its own has lines for segments, along which every axis stands still or
    counts up: at most one or two for a line of a grid, at 20 bytes, or 25 with a fourth axis. The
    one family that generates images, glm_image, adds 24 bytes a grid, 24 a row and 24 more.

    Token indices count the tokens of a row, padding included, from 0. The index after the row's
    last is that of the first token that is decoded, and so on without end; of glm_image these are
    the images to be generated, their end, and text that counts on from the prompt's length, as its
    deltas of 0 say. Where rows of the input hold several sequences each (`sequence_ids`), the rows
    of the plan are the sequences, each with the padding behind it; `position_ids` and `shard` have
    the rows of the input all the same. What is said to have 3 axes has A of them where the family
    has others.

    Attributes:
        starts: (S,) ascending index, in the batch, of each segment's first token.
        table: (6, S) integers: origin, base, width, height, frames in a group and span; or (A, S),
            the first position of each line on A axes.
        pace: (2, S) floats that make a frame's number its temporal offset, or None.
        slopes: (A + 1, S) int8: by how much each axis counts up on a line, 0 or 1, and 1 for
            unmasked tokens; None where segments are no lines.
        tail: (3, U) int64: index, first position and columns of each image that the rows generate,
            as `Tail` has them; None where text alone is generated.
        tail_rows: (3, B) int64: index and number of the tokens that each row generates, and the
            position of the last; or None.
        row_bounds: (B + 1,) where each row starts in the batch, then N.
        next_positions: (B,) the position of the first token of text after each row.
        rope_deltas: (B, 1) int64, as `vecrope.get_rope_index` returns them.
        num_tokens: N, padding included.
        seq_len: T, or None where the input was packed.
        dtype: of the positions.
        padding_value: the position of masked tokens.
        exact: whether the table has just as many rows as there are segments; `position_ids` may
            then read values.
        frame_size: height and width of all frames, in tokens, if the table is that of one prompt in
            which text, maybe none, and whole frames take turns, as `vecrope.whole.table_of_frames`
            makes it; None for any other. Operations on the plan as a pytree forget it.
    """

    starts: Tensor
    table: Tensor
    pace: Tensor | None
    slopes: Tensor | None
    row_bounds: Tensor
    next_positions: Tensor
    rope_deltas: Tensor
    num_tokens: int
    seq_len: int | None
    dtype: torch.dtype
    padding_value: int
    exact: bool
    tail: Tensor | None = None
    tail_rows: Tensor | None = None
    frame_size: tuple[int, int] | None = None

    @property
    def num_rows(self) -> int:
        """B, the number of rows or of packed sequences."""
        return self.row_bounds.shape[0] - 1

    @property
    def num_axes(self) -> int:
        """A, the number of axes: 3 but for families with a rule of their own."""
        return 3 if self.slopes is None else self.table.shape[0]

    @property
    def device(self) -> torch.device:
        """The device of the table, and of what is expanded from it."""
        return self.starts.device

    @property
    def nbytes(self) -> int:
        """The bytes that the plan's tensors hold."""
        return sum(leaf.nbytes for leaf in pytree.tree_leaves(self) if isinstance(leaf, Tensor))

    def to(self, device: torch.device | str) -> RopeIndexPlan:
        """Return the plan on a device; the same plan if it is there."""
        if torch.device(device) == self.device:
            return self
        moved: RopeIndexPlan = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), self)
        return replace(moved, exact=self.exact and torch.device(device).type == "cpu")

    def position_ids(
        self, *, text_positions: bool = False, pad_to_multiple_of: int | None = None
    ) -> Tensor:
        """Return the positions of all tokens of the batch.

        Args:
            text_positions: put a row in front that counts the unmasked tokens of each row, as
                transformers' text models take it to tell packed sequences apart.
            pad_to_multiple_of: add columns of `padding_value` at the right up to a multiple, of 0
                in the row of `text_positions`.

        Returns:
            (A, B, T) in the plan's dtype, A being 3 for nearly all families, or (A, N) for packed
            input; (A + 1, ...) with `text_positions`.

        Raises:
            ValueError: if `pad_to_multiple_of` is less than 1.
        """
        width = self._padded_width(pad_to_multiple_of)
        if self.frame_size is not None:
            positions = positions_of_table(
                self.starts, self.frame_size, self.num_tokens, self.dtype
            )
        elif self.exact and self.slopes is None:
            layout = Layout(self.starts, self.table, self.pace)
            positions = all_positions(layout, self.num_tokens, self.dtype)
        else:
            positions = self._expand(self._all_tokens()).to(self.dtype)
        if self.seq_len is not None:
            positions = positions.view(self.num_axes, self._num_input_rows, self.seq_len)
        room = (0, width - positions.shape[-1])
        padded = pad(positions, room, value=self.padding_value) if room[1] else positions
        if not text_positions:
            return padded
        text = self._text_positions(self._all_tokens()).to(self.dtype).view(positions.shape[1:])
        return torch.cat((pad(text, room)[None], padded))

    def shard(
        self,
        rank: int,
        world_size: int,
        layout: ShardLayout = "contiguous",
        *,
        text_positions: bool = False,
        pad_to_multiple_of: int | None = None,
    ) -> Tensor:
        """Return the positions of one rank's tokens under context parallelism.

        It is `position_ids` at the columns of `vecrope.shard_indices`, expanded for these alone.
        Does not synchronise.

        Args:
            rank: of this process in the group, from 0.
            world_size: number of ranks in the group.
            layout: `"contiguous"` chunks, or `"zigzag"`: one chunk from the front and one from the
                back of the sequence.
            text_positions: as in `position_ids`.
            pad_to_multiple_of: as in `position_ids`; a multiple of `world_size`, for `"zigzag"` of
                twice that, always suffices.

        Returns:
            (3, B, T / world_size) or (4, B, T / world_size) in the plan's dtype, of the padded T;
            (3, N / world_size) or (4, N / world_size) for packed input.

        Raises:
            ValueError: for a rank that is not in the group, fewer tokens than ranks, and a length
                that cannot be cut into equal chunks.

        Example:
            >>> import torch, vecrope
            >>> spec = vecrope.MRopeSpec.for_model("qwen2_vl", convention="transformers")
            >>> plan = vecrope.plan_rope_index(torch.tensor([[7, 8, 9, 9, 8, 7]]), spec)
            >>> plan.shard(0, 2, "zigzag", pad_to_multiple_of=4)[0]
            tensor([[0, 1, 0, 0]])
        """
        columns = shard_indices(
            self._padded_width(pad_to_multiple_of), rank, world_size, layout, device=self.device
        )
        width = self.num_tokens if self.seq_len is None else self.seq_len
        rows = torch.arange(self._num_input_rows, device=self.device).unsqueeze(1)
        # The columns of padding lie where the next row does, of which nothing is taken.
        index = (rows * width + columns).to(self.starts.dtype)
        inside = columns < width
        positions = torch.where(inside, self._expand(index), self.padding_value)
        if text_positions:
            text = torch.where(inside, self._text_positions(index), 0)
            positions = torch.cat((text[None], positions))
        return (positions[:, 0] if self.seq_len is None else positions).to(self.dtype)

    def slice(self, start: int, stop: int) -> Tensor:
        """Return the positions of the tokens from `start` to before `stop` in every row.

        Beyond the end of its row a token is one that is decoded, so that a chunk of a prefill may
        run on into decoding. Does not synchronise.

        Args:
            start: index in the row, from 0.
            stop: index in the row, at least `start`; there is no upper limit.

        Returns:
            (3, B, stop - start) in the plan's dtype.

        Raises:
            ValueError: if `start` is negative or `stop` is less.
        """
        if start < 0 or stop < start:
            raise ValueError(
                f"a slice must have 0 <= start <= stop, got start {start} and stop {stop}"
            )
        index = torch.arange(start, stop, device=self.device).expand(self.num_rows, -1)
        return self.at(index, validate=False)

    def at(
        self, token_index: Tensor, rows: Tensor | None = None, *, validate: bool = True
    ) -> Tensor:
        """Return the positions of any tokens, in any order.

        Indices on another device than the plan are copied to it, which may wait.

        Args:
            token_index: integers of any shape, indices in a row from 0; beyond its end are the
                tokens that are decoded. Without `rows` the first dimension is the rows of the
                batch, (B, ...).
            rows: integers, the row of each index; broadcast with `token_index`.
            validate: check the values of both, which synchronises where they are not on a CPU.

        Returns:
            (3, ...) in the plan's dtype, of the broadcast shape.

        Raises:
            TypeError: for indices that are not integers.
            ValueError: for a negative index, a row that is not there, or a wrong first dimension.
        """
        for name, values in (("token_index", token_index), ("rows", rows)):
            if values is None:
                continue
            if not isinstance(values, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(values).__name__}")
            _check_integers(name, values)
        if rows is None:
            if token_index.dim() == 0 or token_index.shape[0] != self.num_rows:
                raise ValueError(
                    f"token_index must have shape ({self.num_rows}, ...), a dimension for the rows "
                    f"first, got {tuple(token_index.shape)}; or give rows"
                )
            shape = (self.num_rows,) + (1,) * (token_index.dim() - 1)
            rows = torch.arange(self.num_rows, device=self.device).view(shape)
        elif validate and rows.numel():
            least, most = int(rows.amin()), int(rows.amax())
            if least < 0 or most >= self.num_rows:
                wrong = least if least < 0 else most
                raise ValueError(f"rows must be from 0 to {self.num_rows - 1}, got {wrong}")
        if validate and token_index.numel() and int(token_index.amin()) < 0:
            raise ValueError(f"token_index must not be negative, got {int(token_index.amin())}")
        # In 64 bits: a byte is no index but a mask, and the lengths would wrap in it.
        rows = rows.to(self.device, torch.int64)
        token_index = token_index.to(self.device, torch.int64)
        begin = self.row_bounds[rows]
        beyond = token_index - (self.row_bounds[rows + 1] - begin)
        # Behind its row's end an index lies in another row or in none, of which nothing is taken.
        positions = self._expand((begin + token_index).to(self.starts.dtype).contiguous())
        decoded = self._decoded(rows, beyond)
        return torch.where(beyond < 0, positions, decoded).to(self.dtype)

    def decode(self, num_tokens: int = 1, *, start: int | Tensor = 0) -> Tensor:
        """Return the positions of tokens after the prompt; does not synchronise.

        Args:
            num_tokens: how many for each row.
            start: how many tokens of the row have been decoded before; a number, or (B,) integers,
                which are copied where they are on another device, and that may wait.

        Returns:
            (A, B, num_tokens) in the plan's dtype, A being 3 for nearly all families. All axes are
            alike, but in images that are generated.

        Raises:
            TypeError: if `start` is not of integers.
            ValueError: if `num_tokens` is negative or `start` has another shape.
        """
        if num_tokens < 0:
            raise ValueError(f"num_tokens must not be negative, got {num_tokens}")
        if isinstance(start, float):
            raise TypeError(f"start must be an integer, got {start}")
        if isinstance(start, Tensor):
            _check_integers("start", start)
            shape = tuple(start.shape)
            if shape not in ((), (self.num_rows,)):
                raise ValueError(f"start must have shape ({self.num_rows},), got {shape}")
            start = start.to(self.device).unsqueeze(-1)
        rows = torch.arange(self.num_rows, device=self.device).unsqueeze(1)
        index = start + torch.arange(num_tokens, device=self.device)
        return self._decoded(rows, index).to(self.dtype).expand(self.num_axes, -1, -1)

    def step(
        self,
        num_computed_tokens: Tensor | Sequence[int],
        num_scheduled_tokens: Tensor | Sequence[int],
        *,
        out: Tensor | None = None,
        num_tokens: int | None = None,
        validate: bool = True,
    ) -> Tensor:
        """Return the positions of one step of a serving engine, for all rows one after the other.

        A row takes part with the tokens behind those that have been computed: a chunk of its
        prompt, one or more decoded tokens, a chunk that runs from the one into the other, or none.

        Args:
            num_computed_tokens: (B,) integers, tokens of each row that lie behind. A list, or a
                tensor on another device than the plan, is copied to it, which may wait.
            num_scheduled_tokens: (B,) integers, tokens of each row in this step; likewise.
            out: (3, at least `num_tokens`), written at its first columns, of the plan's dtype, or
                int64 or int32 if that is of integers; None: new.
            num_tokens: the sum of `num_scheduled_tokens`, where it is known; None: it is read,
                which synchronises where they are a tensor that is not on a CPU. With more columns
                than that, the last row goes on in them, so that a step may be padded.
            validate: check the values of both, which synchronises likewise.

        Returns:
            (3, num_tokens) in the plan's dtype, or that view of `out`.

        Raises:
            TypeError: for numbers that are not integers, or an `out` that cannot hold them.
            ValueError: for another number of rows, for negative numbers, for an `out` that is too
                small, or for a `num_tokens` that is too small.

        Example:
            >>> import torch, vecrope
            >>> spec = vecrope.MRopeSpec.for_model("qwen2_vl", convention="vllm")
            >>> image = spec.image_token_id
            >>> plan = vecrope.plan_rope_index(
            ...     torch.tensor([[7, image, image, 8]]), spec,
            ...     image_grid_thw=torch.tensor([[1, 2, 4]]),
            ... )
            >>> batch = vecrope.concatenate_plans([plan, plan, plan])
            >>> batch.step([0, 2, 9], [3, 3, 1])  # a chunk, its rest and a token more, decoding
            tensor([[0, 1, 1, 1, 3, 4, 9],
                    [0, 1, 1, 1, 3, 4, 9],
                    [0, 1, 2, 2, 3, 4, 9]])
        """
        computed = self._per_row("num_computed_tokens", num_computed_tokens)
        scheduled = self._per_row("num_scheduled_tokens", num_scheduled_tokens)
        if validate:
            for name, numbers in (
                ("num_computed_tokens", computed),
                ("num_scheduled_tokens", scheduled),
            ):
                for row in (numbers < 0).nonzero()[:1, 0].tolist():
                    raise ValueError(
                        f"{name} must not be negative, got {int(numbers[row])} for row {row}"
                    )
        if num_tokens is None or validate:
            total = int(scheduled.sum())
            num_tokens = total if num_tokens is None else num_tokens
            if num_tokens < total:
                raise ValueError(
                    f"num_tokens must be at least {total}, the tokens of all rows, got {num_tokens}"
                )
        computed, scheduled = computed.to(self.device), scheduled.to(self.device)
        ends = scheduled.cumsum(0)
        column = torch.arange(num_tokens, device=self.device)
        rows = torch.searchsorted(ends, column, right=True).clamp(max=self.num_rows - 1)
        index = column + (computed - ends + scheduled)[rows]
        positions = self.at(index, rows, validate=False)
        if out is None:
            return positions
        # Whole numbers would lose what is behind the point of fractions.
        others = "" if self.dtype.is_floating_point else ", int64 or int32"
        if out.dtype != self.dtype and not (others and out.dtype in (torch.int64, torch.int32)):
            raise TypeError(f"out must be {self.dtype}{others}, got {out.dtype}")
        if out.dim() != 2 or out.shape[0] != self.num_axes or out.shape[1] < num_tokens:
            raise ValueError(
                f"out must have shape ({self.num_axes}, at least {num_tokens}), "
                f"got {tuple(out.shape)}"
            )
        return out[:, :num_tokens].copy_(positions)

    def _per_row(self, name: str, numbers: Tensor | Sequence[int]) -> Tensor:
        if not isinstance(numbers, Tensor):
            # Without a number there is none that says its type.
            dtype = None if len(numbers) else torch.int64
            numbers = torch.tensor(numbers, dtype=dtype, device="cpu")
        _check_integers(name, numbers)
        if numbers.shape != (self.num_rows,):
            raise ValueError(
                f"{name} must have shape ({self.num_rows},), a number for each row of the plan, "
                f"got {tuple(numbers.shape)}"
            )
        return numbers.to(torch.int64)

    def _decoded(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return the positions of tokens behind the prompts, `index` of them behind `rows`' ends.

        (...) where all axes are alike, or (3, ...).
        """
        positions = self.next_positions[rows] + index
        if self.tail is None or self.tail_rows is None:
            return positions
        generated = positions_on_tail(Tail(self.tail, self.tail_rows), rows, index)
        return torch.where(index < self.tail_rows[1, rows], generated, positions)

    def _expand(self, index: Tensor) -> Tensor:
        """Return the (A, ...) positions of the tokens at `index` (...) of the batch."""
        if self.slopes is not None:
            return positions_on(Lines(self.starts, self.table, self.slopes), index)
        return positions_at(Layout(self.starts, self.table, self.pace), index)

    @property
    def _num_input_rows(self) -> int:
        """Rows of the input, each of which may hold several rows of the plan; 1 if packed."""
        if not self.seq_len:
            return 1 if self.seq_len is None else self.num_rows
        return self.num_tokens // self.seq_len

    def _padded_width(self, multiple: int | None) -> int:
        if multiple is not None and multiple < 1:
            raise ValueError(f"pad_to_multiple_of must be at least 1, got {multiple}")
        width = self.num_tokens if self.seq_len is None else self.seq_len
        return width if multiple is None else width + -width % multiple

    def _all_tokens(self) -> Tensor:
        return torch.arange(self.num_tokens, dtype=self.starts.dtype, device=self.device)

    def _text_positions(self, index: Tensor) -> Tensor:
        """Return how many unmasked tokens of its row stand before each token, 0 at masked ones."""
        masked = (self.table[5] if self.slopes is None else self.slopes[-1]) == 0
        bounds = torch.cat((self.starts, self.row_bounds[-1:]))
        gaps = pad(torch.where(masked, bounds.diff(), 0).cumsum(0), (1, 0))
        row = torch.searchsorted(self.row_bounds, index, right=True) - 1
        begin = self.row_bounds[row]
        segment = torch.searchsorted(self.starts, index, right=True) - 1
        before = gaps[segment] - gaps[torch.searchsorted(self.starts, begin)]
        return torch.where(masked[segment], 0, index - begin - before)


def concatenate_plans(plans: Sequence[RopeIndexPlan]) -> RopeIndexPlan:
    """Return one plan of the rows of several, as packed sequences.

    On a device other than the CPU it copies some numbers a plan from the host, which may wait.

    Args:
        plans: on one device and of one dtype, with at least one among them.

    Raises:
        ValueError: if there is none, or if devices, dtypes, families or the precision of their
            seconds differ.
    """
    if not plans:
        raise ValueError("plans must hold at least one plan, got none")
    for name in ("device", "dtype", "padding_value"):
        found = {getattr(plan, name) for plan in plans}
        if len(found) > 1:
            raise ValueError(f"plans must have one {name}, got {sorted(map(str, found))}")
    paces = [plan.pace for plan in plans if plan.pace is not None]
    slopes = [plan.slopes for plan in plans if plan.slopes is not None]
    tails = [
        Tail(plan.tail, plan.tail_rows)
        for plan in plans
        if plan.tail is not None and plan.tail_rows is not None
    ]
    mixed = any(len(parts) not in (0, len(plans)) for parts in (slopes, tails))
    if mixed or len({plan.num_axes for plan in plans}) > 1:
        raise ValueError(
            "plans must be of one family: some have segments, some lines, other axes or images to "
            "be generated"
        )
    if len(paces) not in (0, len(plans)):
        raise ValueError("plans must be of one family: some space videos in time and some do not")
    precisions = {pace.dtype for pace in paces}
    if len(precisions) > 1:
        # The product of a frame's number and its seconds is rounded to their precision.
        raise ValueError(
            "plans must have seconds of one precision, got "
            f"{sorted(map(str, precisions))}; give second_per_grid_ts of one dtype, for no videos "
            "as an empty tensor"
        )
    starts = torch.cat([plan.starts for plan in plans])
    table = torch.cat([plan.table for plan in plans], 1)
    bounds = torch.cat([plan.row_bounds for plan in plans])
    total = sum(plan.num_tokens for plan in plans)
    if total >= 2**30:
        starts, bounds = starts.long(), bounds.long()
        table = table.long() if not slopes else table
    # By how much each segment and each bound is shifted; all but the last plan's last bound, which
    # is the next plan's first.
    sizes = torch.tensor(
        [(plan.num_tokens, plan.starts.shape[0], plan.num_rows) for plan in plans], device="cpu"
    )
    num_tokens, segments, rows = sizes.unbind(1)
    begin = num_tokens.cumsum(0) - num_tokens
    number = torch.arange(len(plans), device="cpu")
    number = number.repeat_interleave(rows, output_size=bounds.shape[0] - len(plans))
    number = pad(number, (0, 1), value=len(plans) - 1)
    kept = torch.arange(number.shape[0], device="cpu") + number
    shift = begin.repeat_interleave(segments, output_size=starts.shape[0])
    shift = shift.to(starts.device, starts.dtype)
    if not slopes:
        table[0] += shift
    bounds = bounds[kept.to(bounds.device)] + begin[number].to(bounds.device, bounds.dtype)
    tail = concatenate_tails(tails) if tails else None
    return replace(
        plans[0],
        starts=starts.add_(shift),
        table=table,
        pace=torch.cat(paces, 1) if paces else None,
        slopes=torch.cat(slopes, 1) if slopes else None,
        row_bounds=bounds,
        next_positions=torch.cat([plan.next_positions for plan in plans]),
        rope_deltas=torch.cat([plan.rope_deltas for plan in plans]),
        num_tokens=total,
        seq_len=None,
        exact=all(plan.exact for plan in plans),
        tail=None if tail is None else tail.images,
        tail_rows=None if tail is None else tail.rows,
        frame_size=None,
    )


def _check_integers(name: str, values: Tensor) -> None:
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {values.dtype}")


_LEAVES = (
    *("starts", "table", "pace", "slopes", "row_bounds", "next_positions", "rope_deltas"),
    *("tail", "tail_rows", "num_tokens", "seq_len"),
)
_CONSTANTS = ("dtype", "padding_value", "exact")


def _flatten(plan: RopeIndexPlan) -> tuple[list[Any], tuple[Any, ...]]:
    constants = tuple(getattr(plan, name) for name in _CONSTANTS)
    return [getattr(plan, name) for name in _LEAVES], constants


def _flatten_with_keys(
    plan: RopeIndexPlan,
) -> tuple[list[tuple[pytree.KeyEntry, Any]], tuple[Any, ...]]:
    leaves, constants = _flatten(plan)
    keys = map(pytree.GetAttrKey, _LEAVES)
    return list(zip(keys, leaves, strict=True)), constants


def _unflatten(leaves: Any, constants: Any) -> RopeIndexPlan:
    named = zip((*_LEAVES, *_CONSTANTS), (*leaves, *constants), strict=True)
    return RopeIndexPlan(**dict(named))


def _to_json(constants: tuple[Any, ...]) -> list[Any]:
    dtype, *others = constants
    return [str(dtype).removeprefix("torch."), *others]


def _from_json(constants: list[Any]) -> tuple[Any, ...]:
    dtype, *others = constants
    return getattr(torch, dtype), *others


pytree.register_pytree_node(
    RopeIndexPlan,
    _flatten,
    _unflatten,
    serialized_type_name="vecrope.RopeIndexPlan",
    to_dumpable_context=_to_json,
    from_dumpable_context=_from_json,
    flatten_with_keys_fn=_flatten_with_keys,
)
# So that `torch.load` and `torch.export.load` take plans without being told to trust the file.
torch.serialization.add_safe_globals([RopeIndexPlan])
