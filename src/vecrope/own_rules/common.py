"""What the rules of single families share: how a call begins and fails."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope import checks
from vecrope.core.modality import TEXT
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

    def where(self, at: int) -> str:
        """Name a token by its row and its number in the row, masked ones included."""
        row = bisect_right(self.bounds, at) - 1
        at = at if self.given_index is None else int(self.given_index[at])
        return f"row {row}, token {at - self.given_bounds[row]}"


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


def unmasked_first(stream: Stream) -> tuple[Stream, Tensor]:
    """Return a stream of the unmasked tokens, with others behind them, and where each token is."""
    kept, num_tokens = stream.kept, stream.num_tokens
    if kept is None:
        return stream, torch.arange(num_tokens, device=stream.input_ids.device)
    ranks = kept.cumsum(0)
    # What is masked leaves its place, and all go to one behind the others.
    target = (ranks - 1).masked_fill(~kept, num_tokens)
    ids, types = (
        None
        if values is None
        else values.new_full((num_tokens + 1,), none).scatter(0, target, values)[:-1]
        for values, none in ((stream.input_ids, -1), (stream.token_types, TEXT))
    )
    assert ids is not None
    bounds = pad(ranks, (1, 0))[stream.row_bounds]
    return Stream(ids, types, None, bounds, tuple(ids.shape)), (ranks - 1).clamp(min=0)


def kept_tokens(stream: Stream) -> Tensor:
    """Return (N,) bool: the unmasked tokens."""
    if stream.kept is not None:
        return stream.kept
    return torch.ones_like(stream.input_ids, dtype=torch.bool)


def positions_dtype(inputs: Inputs, spec: MRopeSpec) -> torch.dtype:
    """Return the dtype of the positions."""
    ids = inputs.input_ids.dtype
    return {"ids": ids, "int64": torch.int64, "float32": torch.float32}[spec.position_dtype]


# The schema of an operator that numbers a batch; `operands_of` returns its arguments.
OPERANDS = (
    "(Tensor input_ids, "
    + "".join(f"Tensor? {name}, " for name in Inputs._fields[1:12])
    + "bool allow_unused_grids, bool round_grid_sides, str spec) -> (Tensor, Tensor)"
)


def operands_of(inputs: Inputs, spec: MRopeSpec) -> tuple[Any, ...]:
    """Return a batch and its rules as an operator takes them."""
    seconds, videos = inputs.second_per_grid_ts, inputs.video_grid_thw
    if seconds is not None and not isinstance(seconds, Tensor):
        seconds = torch.tensor(seconds, dtype=torch.float64, device="cpu")
    sound: Any = inputs.use_audio_in_video
    if sound is True:
        num_videos = 0 if videos is None else videos.shape[0]
        sound = torch.ones(num_videos, dtype=torch.bool, device="cpu")
    sound = None if sound is False else torch.as_tensor(sound, dtype=torch.bool)
    return *inputs[:6], seconds, inputs.audio_seqlens, sound, *inputs[9:14], spec.as_text


def from_operands(operands: Sequence[Any]) -> tuple[Inputs, MRopeSpec]:
    """Return the batch and the rules that an operator was given."""
    inputs = Inputs(*operands[:-1])
    if operands[8] is None:
        inputs = inputs._replace(use_audio_in_video=False)
    return inputs, MRopeSpec.from_text(operands[-1])


def unset_answer(
    inputs: Inputs, positions: torch.dtype, deltas: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return positions (3, B, T) or (3, N), and deltas (B, 1), whose values are not set."""
    ids, bounds = inputs.input_ids, inputs.cu_seqlens
    num_rows = ids.shape[0] if bounds is None else bounds.shape[0] - 1
    return (
        ids.new_empty((3, *ids.shape), dtype=positions),
        ids.new_empty((num_rows, 1), dtype=deltas),
    )
