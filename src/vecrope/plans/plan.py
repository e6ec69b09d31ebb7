"""The positions of a batch as a plan, expanded where they are needed: what all plans share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vecrope.checks import check_beside, check_int
from vecrope.plans.arguments import (
    MAX_START,
    check_integers,
    check_out,
    check_range,
    numbers_of_rows,
)
from vecrope.plans.rows import check_plan, concatenate_plans
from vecrope.plans.shards import Columns, ShardLayout, columns_of_rank
from vecrope.plans.table import PlanTable
from vecrope.sequences import padded_width

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, eq=False, repr=False)
class RopeIndexPlan(PlanTable):
    """A table from which the positions of any tokens of a batch are computed.

    `vecrope.plan_rope_index` and `vecrope.plan_from_placeholders` make plans: a `GroupPlan` for
    families of the shared rule, and a `LinePlan` for a family with a rule of its own. A plan cannot
    be changed: `select`, `replace` and `vecrope.concatenate_plans` return others. It is a pytree of
    tensors: it passes through `torch.compile` and `torch.export`, and `to` moves it. `len` is the
    number of its rows, B. Besides its entries it takes 40 bytes a row.

    The tokens of a row, padding included, have the indices 0, 1, 2, ...; the tokens that are
    decoded after them have the indices that follow. For glm_image the images to be generated and
    their end come first among those; text after them counts on from the prompt's length. If rows of
    the input hold several sequences each (`sequence_ids`), the rows of the plan are the sequences,
    each with the padding after it, but `position_ids` and `shard` return the rows of the input.

    Positions are in the plan's dtype and on its device; A is the number of axes, 3 for most
    families. `text_positions` prepends an axis that counts the unmasked tokens of each row, by
    which transformers' text models tell packed sequences apart. `pad_to_multiple_of` adds columns
    at the right, up to a multiple of this number, which hold `padding_value`, and 0 on that axis.

    An argument on another device is copied, which may synchronise. All methods raise a TypeError
    for indices, numbers and rows that are not integers, and a ValueError for a wrong shape, a
    negative number and a row that the plan does not have. With `validate=False` no value is read or
    checked; otherwise values are, which synchronises where they are not on a CPU.
    """

    def position_ids(
        self, *, text_positions: bool = False, pad_to_multiple_of: int | None = None
    ) -> Tensor:
        """Return the positions of all tokens of the batch.

        Returns:
            (A, B, T), or (A, N) for packed input; (A + 1, ...) with `text_positions`.
        """
        width = padded_width(self._width, pad_to_multiple_of)
        return self._at_columns(Columns(width, 0, width, 0), text_positions=text_positions)

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

        These are the columns of `position_ids` that `vecrope.shard_indices` names; only they are
        computed. The errors are those of `vecrope.shard_indices`. Does not synchronise.

        Args:
            rank: of this process in the group, from 0.
            world_size: number of ranks in the group.
            layout: `"contiguous"` or `"zigzag"`.
            text_positions: see the class.
            pad_to_multiple_of: likewise. `world_size` fits every length with `"contiguous"`, twice
                `world_size` with `"zigzag"`.

        Returns:
            (A, B, T / world_size) of the padded T, or (A, N / world_size) for packed input;
            (A + 1, ...) with `text_positions`.

        Example:
            >>> import torch, vecrope
            >>> spec = vecrope.MRopeSpec.for_model("qwen2_vl", convention="transformers")
            >>> plan = vecrope.plan_rope_index(torch.tensor([[7, 8, 9, 9, 8, 7]]), spec)
            >>> plan.shard(0, 2, "zigzag", pad_to_multiple_of=4)[0]
            tensor([[0, 1, 0, 0]])
        """
        width = padded_width(self._width, pad_to_multiple_of)
        columns = columns_of_rank(width, rank, world_size, layout)
        return self._at_columns(columns, text_positions=text_positions)

    def slice(self, start: int, stop: int) -> Tensor:
        """Return the positions (A, B, stop - start) of tokens `start` to before `stop` of all rows.

        They are fewer than 2**30. They may lie beyond the end of a row, so that a chunk of a
        prefill runs on into decoding. Does not synchronise.
        """
        check_int("start", start)
        check_int("stop", stop)
        if start < 0 or stop < start:
            raise ValueError(
                f"a slice must have 0 <= start <= stop, got start {start} and stop {stop}"
            )
        if stop - start >= MAX_START:
            raise ValueError(
                f"a slice must have fewer than 2**30 tokens, got start {start} and stop {stop}"
            )
        return self._at(range(start, stop), None)

    def at(
        self, token_index: Tensor, rows: Tensor | None = None, *, validate: bool = True
    ) -> Tensor:
        """Return the positions of any tokens, in any order.

        Args:
            token_index: integers of any shape, indices in a row; (B, ...) without `rows`.
            rows: integers, the row of each index; broadcast with `token_index`.
            validate: check the values of both.

        Returns:
            (A, ...) of the broadcast shape.
        """
        check_integers("token_index", token_index)
        if rows is not None:
            check_integers("rows", rows)
            sizes = zip(reversed(token_index.shape), reversed(rows.shape), strict=False)
            if any(size != other and 1 not in (size, other) for size, other in sizes):
                raise ValueError(
                    f"rows must have a shape that broadcasts with token_index "
                    f"{tuple(token_index.shape)}, got {tuple(rows.shape)}"
                )
        elif token_index.shape[:1] != (len(self),):
            raise ValueError(
                f"token_index must have shape ({len(self)}, ...), a dimension for the rows first, "
                f"got {tuple(token_index.shape)}; or give rows"
            )
        if validate:
            check_range("token_index", token_index)
            if rows is not None:
                check_range("rows", rows, len(self))
        # In 64 bits: a byte is no index but a mask.
        token_index = token_index.to(self.device, torch.int64)
        return self._at(token_index, None if rows is None else rows.to(self.device, torch.int64))

    def decode(self, num_tokens: int = 1, *, start: int | Tensor = 0) -> Tensor:
        """Return the positions of tokens after the prompt; does not synchronise.

        Args:
            num_tokens: how many for each row.
            start: the number of tokens of each row that were decoded before, less than 2**30: one
                number, or (B,) integers, whose values are checked only on a CPU.

        Returns:
            (A, B, num_tokens). All axes are equal, except in generated images.
        """
        check_int("num_tokens", num_tokens, 0, MAX_START)
        if isinstance(start, Tensor):
            check_integers("start", start)
            if start.dim() and start.shape != (len(self),):
                raise ValueError(f"start must have shape ({len(self)},), got {tuple(start.shape)}")
            if not torch.compiler.is_compiling():
                check_beside("start", start, self.rows)
                if start.is_cpu and type(start) is Tensor:
                    check_range("start", start, MAX_START)
            start = start.to(self.device).unsqueeze(-1)
        else:
            check_int("start", start, 0, MAX_START)
        rows = torch.arange(self.num_rows, device=self.device).unsqueeze(1)
        index = start + torch.arange(num_tokens, device=self.device)
        decoded = self._decoded(rows, self.rows[:, 2:3], index)
        return decoded.to(self.dtype).expand(self.num_axes, -1, -1)

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

        Each row contributes its next tokens: a chunk of its prompt, decoded tokens, the end of its
        prompt and the first decoded tokens, or none.

        Args:
            num_computed_tokens: (B,) integers, the tokens of each row that earlier steps computed.
            num_scheduled_tokens: (B,) integers, the tokens of each row in this step, fewer than
                2**30 in all.
            out: (A, at least `num_tokens`) to write to, from the first column on, in the plan's
                dtype; int64 and int32 may stand for each other. None: a new tensor.
            num_tokens: the sum of `num_scheduled_tokens`, if the caller knows it. None: it is read,
                which synchronises as checks do. If it is larger than the sum, the last row
                continues in the columns that are left, so that a step may be padded.
            validate: check the values of both.

        Returns:
            (A, num_tokens); with `out`, a view of it.

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
        computed = numbers_of_rows("num_computed_tokens", num_computed_tokens, len(self))
        scheduled = numbers_of_rows("num_scheduled_tokens", num_scheduled_tokens, len(self))
        if validate:
            check_range("num_computed_tokens", computed)
            check_range("num_scheduled_tokens", scheduled)
        if num_tokens is not None:
            check_int("num_tokens", num_tokens, 0, MAX_START)
        if num_tokens is None or validate:
            total = int(scheduled.sum())
            if total >= MAX_START:
                raise ValueError(
                    f"num_scheduled_tokens must be fewer than 2**30 in all, got {total}"
                )
            num_tokens = total if num_tokens is None else num_tokens
            if num_tokens < total:
                raise ValueError(
                    f"num_tokens must be at least {total}, the tokens of all rows, got {num_tokens}"
                )
        if num_tokens and not len(self):
            raise ValueError(f"num_tokens must be 0 for a plan without rows, got {num_tokens}")
        if out is not None:
            check_out(out, self.num_axes, num_tokens, self.dtype)
        return self._step(computed.to(self.device), scheduled.to(self.device), num_tokens, out)

    def select(self, rows: Tensor | Sequence[int]) -> Self:
        """Return the plan of some of the rows, (n,) in any order, as packed sequences.

        The number of operators does not depend on the rows. Reading how many tokens and entries
        are left synchronises on a device other than the CPU.

        Example:
            >>> import torch, vecrope
            >>> spec = vecrope.MRopeSpec.for_model("qwen2_vl", convention="vllm")
            >>> plan = vecrope.plan_rope_index(torch.tensor([[7, 8], [8, 9], [9, 7]]), spec)
            >>> plan.select([2, 0])
            <GroupPlan of qwen2_vl (vllm): 2 rows, 4 tokens, torch.int64, 152 bytes on cpu>
        """
        index = numbers_of_rows("rows", rows, None)
        check_range("rows", index, len(self))
        return self._select(index.to(self.device, torch.int64))

    def replace(self, rows: Tensor | Sequence[int], other: Self) -> Self:
        """Return the plan with the requests of another in some of its rows, as packed sequences.

        It synchronises as `select` does. `rows` (n,), none of them twice, are those of the n rows
        of `other`, which must go together with this plan as for `vecrope.concatenate_plans`.
        """
        check_plan("other", other)
        index = numbers_of_rows("rows", rows, len(other), "other")
        check_range("rows", index, len(self))
        places = index.tolist()
        if len({*places}) < len(places):
            raise ValueError(f"rows must not hold a row twice, got {places}")
        order = torch.arange(len(self), device="cpu")
        order[index.long()] = torch.arange(len(self), len(self) + len(places), device="cpu")
        return concatenate_plans([self, other])._select(order.to(self.device))
