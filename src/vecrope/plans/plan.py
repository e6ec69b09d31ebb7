"""The positions of a batch as a plan, expanded where they are needed: what all plans share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils import _pytree as pytree

from vecrope.checks import check_int, check_tensor
from vecrope.core.search import search
from vecrope.plans.shards import ShardLayout, shard_indices
from vecrope.plans.step import check_integers, tokens_of_step, written
from vecrope.sequences import padded_width

INVALID_DELTA = torch.iinfo(torch.int64).min
# From so many tokens on indices have 64 bits.
WIDE_FROM = 2**30


@dataclass(frozen=True, eq=False)
class RopeIndexPlan(ABC):
    """A table from which the positions of any tokens of a batch are computed.

    `vecrope.plan_rope_index` and `vecrope.plan_from_placeholders` make plans: a `GroupPlan` for
    families of the shared rule, and a `LinePlan` for a family with a rule of its own. A plan is a
    pytree of tensors: it passes through `torch.compile` and `torch.export`, and `to` moves it.
    Besides its table it takes 20 bytes a row and 4 more; from 2**30 tokens on its indices have 64
    bits.

    Token indices count the tokens of a row, padding included, from 0. The index after the row's
    last is that of the first token that is decoded, and so on without end; of glm_image these are
    the images to be generated, their end, and text that counts on from the prompt's length, as its
    deltas of 0 say. Where rows of the input hold several sequences each (`sequence_ids`), the rows
    of the plan are the sequences, each with the padding behind it; `position_ids` and `shard` have
    the rows of the input all the same. What is said to have 3 axes has A of them where the family
    has others.

    Attributes:
        row_bounds: (B + 1,) where each row starts in the batch, then N.
        next_positions: (B,) int64, the position of the first token of text after each row.
        rope_deltas: (B, 1) int64, as `vecrope.get_rope_index` returns them.
        num_tokens: N, padding included.
        seq_len: T, or None where the input was packed.
        dtype: of the positions.
        padding_value: the position of masked tokens.
    """

    row_bounds: Tensor
    next_positions: Tensor
    rope_deltas: Tensor
    num_tokens: int
    seq_len: int | None
    dtype: torch.dtype
    padding_value: int

    @property
    def num_rows(self) -> int:
        """B, the number of rows or of packed sequences."""
        return self.row_bounds.shape[0] - 1

    @property
    @abstractmethod
    def num_axes(self) -> int:
        """A, the number of axes: 3 but for families with a rule of their own."""

    @property
    def device(self) -> torch.device:
        """The device of the table, and of what is expanded from it."""
        return self.row_bounds.device

    @property
    def nbytes(self) -> int:
        """The bytes that the plan's tensors hold."""
        return sum(leaf.nbytes for leaf in pytree.tree_leaves(self) if isinstance(leaf, Tensor))

    def to(self, device: torch.device | str) -> RopeIndexPlan:
        """Return the plan on a device; the same plan if it is there."""
        if torch.device(device) == self.device:
            return self
        moved: RopeIndexPlan = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), self)
        return moved

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
        positions = self._expand_all()
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
        index = (rows * width + columns).to(self.row_bounds.dtype)
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
            TypeError: for numbers that are no ints.
            ValueError: if `start` is negative or `stop` is less.
        """
        check_int("start", start)
        check_int("stop", stop)
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
            if values is None and name == "rows":
                continue
            check_tensor(name, values)
            assert values is not None
            check_integers(name, values)
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
        decoded = self._decoded(rows, beyond)
        # Most steps of an engine decode.
        if self._reads_values and not bool((beyond < 0).any()):
            decoded = decoded.to(self.dtype)
            return decoded.expand(self.num_axes, *beyond.shape).clone()
        # Behind its row's end an index lies in another row or in none, of which nothing is taken.
        positions = self._expand((begin + token_index).to(self.row_bounds.dtype))
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
            TypeError: if `start` or `num_tokens` is not of integers.
            ValueError: if one of them is negative, `start` has another shape, or is 2**63.
        """
        check_int("num_tokens", num_tokens, 0)
        if not isinstance(start, Tensor):
            check_int("start", start, 0)
        else:
            check_tensor("start", start)
            check_integers("start", start)
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
        index, rows = tokens_of_step(
            num_computed_tokens,
            num_scheduled_tokens,
            self.num_rows,
            self.device,
            num_tokens,
            validate=validate,
        )
        positions = self.at(index, rows, validate=False)
        return positions if out is None else written(positions, out)

    def _decoded(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return the positions of tokens behind the prompts, `index` of them behind `rows`' ends.

        (...) where all axes are alike, or (A, ...).
        """
        return self.next_positions[rows] + index

    @abstractmethod
    def _expand(self, index: Tensor) -> Tensor:
        """Return the (A, ...) positions of the tokens at `index` (...) of the batch."""

    def _expand_all(self) -> Tensor:
        """Return the (A, N) positions of all tokens, in the plan's dtype."""
        return self._expand(self._all_tokens()).to(self.dtype)

    @abstractmethod
    def _masked_runs(self) -> tuple[Tensor, Tensor]:
        """Return (S,) ascending indices at which entries start, and (S,) the end of each.

        The end is that of the entry's masked tokens: its start where there are none.
        """

    @abstractmethod
    def _void(self, invalid: Tensor) -> RopeIndexPlan:
        """Return the plan with -1 for the positions of all tokens, where `invalid` (0-d bool)."""

    @abstractmethod
    def _joined(self, plans: Sequence[Any], begins: Sequence[int], *, wide: bool) -> RopeIndexPlan:
        """Return this plan with the table of several of its class, of which it is the first.

        Args:
            plans: at least one.
            begins: where the tokens of each begin.
            wide: whether indices need 64 bits.

        Raises:
            ValueError: where the plans do not go together.
        """

    def voided(self, invalid: Tensor) -> RopeIndexPlan:
        """Return the plan, or where `invalid` (0-d bool) one that nobody takes for an answer.

        Every position of the prompt is then -1, and what is decoded after it far below 0.
        """
        return replace(
            self._void(invalid),
            next_positions=torch.where(invalid, -(2**31), self.next_positions),
            rope_deltas=torch.where(invalid, INVALID_DELTA, self.rope_deltas),
        )

    @property
    def _reads_values(self) -> bool:
        """Whether a value of the plan can be read without a wait."""
        values = self.row_bounds
        return values.is_cpu and type(values) is Tensor and not torch.compiler.is_compiling()

    @property
    def _num_input_rows(self) -> int:
        """Rows of the input, each of which may hold several rows of the plan; 1 if packed."""
        if not self.seq_len:
            return 1 if self.seq_len is None else self.num_rows
        return self.num_tokens // self.seq_len

    def _padded_width(self, multiple: int | None) -> int:
        return padded_width(self.num_tokens if self.seq_len is None else self.seq_len, multiple)

    def _all_tokens(self) -> Tensor:
        return torch.arange(self.num_tokens, dtype=self.row_bounds.dtype, device=self.device)

    def _text_positions(self, index: Tensor) -> Tensor:
        """Return how many unmasked tokens of its row stand before each token, 0 at masked ones."""
        starts, ends = self._masked_runs()
        masked = pad((ends - starts).cumsum(0), (1, 0))
        begin = self.row_bounds[search(self.row_bounds, index) - 1]
        entry = search(starts, index)
        # Entries before the row are those that start before its first token.
        before = masked[entry] - masked[search(starts, begin - 1)]
        return torch.where(index < ends[entry - 1], 0, index - begin - before)
