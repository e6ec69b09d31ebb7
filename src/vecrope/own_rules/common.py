"""What the rules of single families share: how a call begins and fails."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.faults import invalidate
from vecrope.core.search import search
from vecrope.core.stream import Stream
from vecrope.families.rules import Isaac, MiniCPMV47
from vecrope.forms.eager.runs import Runs, row_starts
from vecrope.inputs import Inputs, positions_dtype
from vecrope.spec import MRopeSpec

# The families of the others have deltas of the dtype of their positions.
_INT64_DELTAS = (Isaac, MiniCPMV47)


def finish(
    stream: Stream,
    inputs: Inputs,
    spec: MRopeSpec,
    positions: Tensor,
    rope_deltas: Tensor,
    fault: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return positions (A, N) and deltas (B,) of any integers as a call answers them.

    Where `fault`, a 0-d bool, is set they are invalidated.
    """
    if stream.kept is not None:
        positions = positions.masked_fill(~stream.kept, spec.padding_value)
    position_ids = positions.to(positions_dtype(inputs, spec)).view(-1, *stream.shape)
    rope_deltas = rope_deltas.to(deltas_dtype(inputs, spec)).view(-1, 1)
    answer = position_ids, rope_deltas
    return answer if fault is None else invalidate(fault, *answer)


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

    def row_of(self, at: int) -> int:
        """Return the row of a token."""
        return bisect_right(self.bounds, at) - 1

    def error(self, at: int, problem: str) -> checks.RowError:
        """Return the error about a token, by its number in its row, masked ones included."""
        row = self.row_of(at)
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


def deltas_dtype(inputs: Inputs, spec: MRopeSpec) -> torch.dtype:
    """Return the dtype of the deltas, of every family but omni."""
    is_int64 = isinstance(spec.own_rule, _INT64_DELTAS)
    return torch.int64 if is_int64 else positions_dtype(inputs, spec)


class Markers(NamedTuple):
    """Markers that open and close: the k-th of both sorts in a row are a pair, while both last."""

    inside: Tensor  # (N,) bool: what is between the two of a pair
    closed: Tensor  # (N,) markers that close in the row up to and with each token
    num_closed: Tensor  # (B,) in the row
    num_pairs: Tensor  # (B,)


def pair_markers(
    stream: Stream, rows: Tensor, opens: Tensor, closes: Tensor, most: Tensor
) -> Markers:
    """Pair the markers, (N,) bool each, in rows (N,); at most (B,) pairs in each row."""
    sums, totals = stream.running_sums(torch.stack((opens, closes)), rows)
    (opened, closed), num_pairs = sums.unbind(), torch.minimum(totals.amin(0), most)
    inside = (opened > closed + opens) & (closed < num_pairs[rows])
    return Markers(inside, closed, totals[1], num_pairs)


def tokens_of(runs: Runs, row: int, kinds: Collection[int]) -> list[int]:
    """Return the tokens of some kinds in a row."""
    return [
        token
        for run in range(runs.rows[row], runs.rows[row + 1])
        if runs.kinds[run] in kinds
        for token in range(runs.starts[run], runs.starts[run + 1])
    ]


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
