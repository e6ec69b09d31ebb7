"""What the rules of single families share: how a call begins and fails."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.search import search
from vecrope.core.stream import Stream, make_stream
from vecrope.forms.eager.runs import row_starts
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec


def open_stream(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> Stream:
    """Return the tokens as a stream.

    With `validate`, and on a CPU, it is one of the exact form; otherwise no operation on it reads
    a value.
    """
    tracing = torch.compiler.is_compiling()
    exact = validate and inputs.input_ids.is_cpu and not tracing
    if not exact and not tracing:
        checks.check_index_range(inputs.input_ids)
    mask = inputs.attention_mask if spec.mask_rule == "skip" else None
    return make_stream(
        inputs.input_ids, mask, inputs.cu_seqlens, inputs.mm_token_type_ids, exact=exact
    )


class Tokens(NamedTuple):
    """The unmasked tokens of a batch on a CPU, one row after the other."""

    inputs: Inputs  # the batch; where some are masked, packed sequences without these
    bounds: list[int]  # where each row begins, then N
    # (N,) where each stands in the batch as given; None: at its own place
    given_index: Tensor | None
    given_bounds: list[int]  # as `bounds`, in the batch as given

    @property
    def ids(self) -> Tensor:
        """(N,) the ids."""
        return self.inputs.input_ids.reshape(-1)

    def in_batch(self, positions: Tensor, padding: int) -> Tensor:
        """Return positions (A, n) of these tokens among those of the batch, (A, N)."""
        if self.given_index is None:
            return positions
        shape = len(positions), self.given_bounds[-1]
        return positions.new_full(shape, padding).index_copy_(1, self.given_index, positions)

    def error(self, at: int, problem: str) -> checks.RowError:
        """Return the error about a token, by its number in its row, masked ones included."""
        row = bisect_right(self.bounds, at) - 1
        at = at if self.given_index is None else int(self.given_index[at])
        return checks.RowError.of(row, f", token {at - self.given_bounds[row]}: {problem}")


def unmasked_tokens(inputs: Inputs) -> Tokens:
    """Return the tokens that count; the mask's values have been checked."""
    mask, types, given_bounds = inputs.attention_mask, inputs.mm_token_type_ids, row_starts(inputs)
    if mask is None:
        return Tokens(inputs, given_bounds, None, given_bounds)
    index = mask.reshape(-1).nonzero().view(-1)
    bounds = search(index, index.new_tensor(given_bounds) - 1)
    inputs = inputs._replace(
        input_ids=inputs.input_ids.reshape(-1)[index],
        mm_token_type_ids=None if types is None else types.reshape(-1)[index],
        attention_mask=None,
        cu_seqlens=bounds,
    )
    return Tokens(inputs, bounds.tolist(), index, given_bounds)


def grids_of(stream: Stream, grid_thw: Tensor | None) -> Tensor:
    """Return (I, 3) grids: none where none are given."""
    if grid_thw is not None:
        return grid_thw
    return torch.empty((0, 3), dtype=torch.int64, device=stream.input_ids.device)


def refuse_videos(inputs: Inputs, spec: MRopeSpec) -> None:
    """Refuse grids of videos; reads only how many there are.

    Raises:
        ValueError: if there are any.
    """
    if inputs.video_grid_thw is not None and inputs.video_grid_thw.shape[0]:
        raise ValueError(
            f"video_grid_thw must be None: {spec.model_type} has no videos, "
            f"got {inputs.video_grid_thw.shape[0]}"
        )


def kept_tokens(stream: Stream) -> Tensor:
    """Return (N,) bool: the unmasked tokens."""
    if stream.kept is not None:
        return stream.kept
    return torch.ones_like(stream.input_ids, dtype=torch.bool)


def positions_dtype(inputs: Inputs, spec: MRopeSpec) -> torch.dtype:
    """Return the dtype of the positions."""
    ids = inputs.input_ids.dtype
    return {"ids": ids, "int64": torch.int64, "float32": torch.float32}[spec.position_dtype]
