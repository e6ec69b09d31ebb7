"""The runs of placeholders in a batch, found on a CPU in passes over single bytes.

An id is clamped to the range of the ids that matter and then fits a byte, so that all but the first
pass read and write an eighth of the ids' size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.modality import set_indices
from vecrope.spec import MRopeSpec

_MASKED = 0


class FrameRuns(NamedTuple):
    """F maximal runs of placeholders of one kind, and M of masked tokens, in the stream's order."""

    starts: Tensor  # (F,) int64 token indices
    lengths: Tensor  # (F,)
    is_video: Tensor | None  # (F,) bool; None: none is a video's
    steps: Tensor  # (B, T) bool: all tokens but the second and later placeholders of each run
    masked: tuple[Tensor, Tensor] | None  # (M,) first token, and first token behind


def find_frame_runs(
    input_ids: Tensor,
    spec: MRopeSpec,
    kept: Tensor | None,
    token_types: Tensor | None,
    scratch: Tensor,
) -> FrameRuns | None:
    """Return the runs of a padded batch, or None if one of placeholders ends its row.

    Args:
        input_ids: (B, T), on a CPU, at least one token.
        spec: the ids that matter.
        kept: (B, T) bool, True = token; None: every one is.
        token_types: (B, T), to be read instead of the ids.
        scratch: (B, T) in the dtype of `input_ids`, overwritten: memory fresh from the system
            costs more than the arithmetic on it.
    """
    num_rows, seq_len = input_ids.shape
    ids = _codes_of_ids(spec) if token_types is None else _CODES_OF_TYPES
    # A column stands before each row, and one place behind the last row, that is no placeholder.
    # It ends a video, so that none runs on into the next row.
    stride = seq_len + 1
    padded = input_ids.new_full((num_rows * stride + 1,), ids.column, dtype=ids.dtype)
    codes = padded.as_strided((num_rows, seq_len), (stride, 1), 1)
    if token_types is None:
        codes.copy_(torch.clamp(input_ids, ids.low, ids.high, out=scratch))
    else:
        codes.copy_(token_types)
    if ids.offset:
        codes.sub_(ids.offset)
    if kept is not None:
        codes.mul_(kept)
    here = padded[1:]
    changed = here != padded[:-1]
    if token_types is None:
        other = (here ^ ids.image).bool()
    else:
        other = (here & ids.image).bool().logical_not_()
    if not bool(other[seq_len - 1 :: stride].all()):
        return None

    changes = set_indices(changed)
    values = here.index_select(0, changes)
    if token_types is None:
        at = set_indices(values == ids.image)
    else:
        at = set_indices(values >= ids.image)
    starts = changes.index_select(0, at)
    lengths = changes[1:].index_select(0, at) - starts
    rows = starts // stride if num_rows > 1 else None
    if token_types is None:
        is_video = _is_video(ids, spec, changes, values, at, rows, stride)
    else:
        is_video = values.index_select(0, at) > ids.image
    if rows is not None:
        starts -= rows
    masked = None
    if kept is not None:
        at = set_indices(values == _MASKED)
        edges = torch.stack((changes.index_select(0, at), changes[1:].index_select(0, at)))
        masked_starts, masked_ends = (edges - edges // stride).unbind()
        masked = (masked_starts, masked_ends)
    steps = changed.logical_or_(other).as_strided((num_rows, seq_len), (stride, 1))
    return FrameRuns(starts, lengths, is_video, steps, masked)


class _Codes(NamedTuple):
    """What matters, clamped to `low` and `high`, cast, less `offset`. 0 is left for masked."""

    low: int
    high: int
    dtype: torch.dtype
    offset: int
    column: int
    image: int
    video_start: int
    video_end: int


@lru_cache
def _codes_of_ids(spec: MRopeSpec) -> _Codes:
    ids = (spec.image_token_id, spec.video_start_token_id, spec.video_end_token_id)
    # Any other id is clamped to the one below or above these.
    zero, high = min(ids) - 2, max(ids) + 1
    offset, dtype = zero, torch.int64
    if high - zero < 256:
        # The cast keeps the last eight bits. From a multiple of 256 on they count from 0.
        block = zero - zero % 256
        if high - block < 256:
            zero = block
        offset, dtype = zero % 256, torch.uint8
    image, video_start, video_end = (token_id - zero for token_id in ids)
    return _Codes(zero + 1, high, dtype, offset, video_end, image, video_start, video_end)


# Types are 0, 1 and 2 for text, image and video; the codes are one more. 2 and 3 share a bit.
_CODES_OF_TYPES = _Codes(0, 2, torch.uint8, -1, 1, 2, -1, -1)


def _is_video(
    ids: _Codes,
    spec: MRopeSpec,
    changes: Tensor,
    values: Tensor,
    at: Tensor,
    rows: Tensor | None,
    stride: int,
) -> Tensor | None:
    """Say which of the runs `at` (F,) among all `changes` (K,) are a video's; None for none."""
    opens = values == ids.video_start
    if not bool(opens.any()):
        return None
    markers = torch.stack((opens, values == ids.video_end))
    if spec.marker_rule == "last":
        order = torch.arange(1, changes.shape[0] + 1, device=changes.device)
        last_open, last_close = (markers * order).cummax(1).values.index_select(1, at).unbind()
        return last_open > last_close
    # The columns between rows are counted too; what has been counted before a row is taken off.
    counts = (markers[:, :-1] * changes.diff()).cumsum(1)
    depth = counts[0] - counts[1]
    if rows is None:
        return depth.index_select(0, at) > 0
    first = torch.searchsorted(changes, rows * stride)
    return depth.index_select(0, at) > torch.nn.functional.pad(depth, (1, 0))[first]
