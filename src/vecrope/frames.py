"""The runs of placeholders in a batch, found on a CPU in passes over single bytes.

An id is clamped to the range of the ids that matter and then fits a byte, so that all but the first
pass read and write an eighth of the ids' size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.modality import TEXT, VIDEO
from vecrope.spec import MRopeSpec
from vecrope.stream import Stream


class FrameRuns(NamedTuple):
    """F maximal runs of placeholders of one kind, in the order of the stream."""

    starts: Tensor  # (F,) int64 token indices
    lengths: Tensor  # (F,)
    is_video: Tensor | None  # (F,) bool; None: none is a video's
    steps: Tensor  # (B, T) bool: all tokens but the second and later placeholders of each run


def find_frame_runs(stream: Stream, spec: MRopeSpec) -> FrameRuns | None:
    """Return the runs of a padded batch, or None if one of them reaches the end of its row."""
    num_rows, seq_len = stream.shape
    by_id = stream.token_types is None
    ids = _codes(spec)
    # A column stands before each row, and one place behind the last row, that is no placeholder.
    # By id it ends a video, so that none runs on into the next row.
    stride = seq_len + 1
    column, dtype = (ids.video_end, ids.dtype) if by_id else (TEXT, torch.uint8)
    padded = torch.full((num_rows * stride + 1,), column, dtype=dtype)
    codes = padded.as_strided((num_rows, seq_len), (stride, 1), 1)
    if stream.token_types is None:
        codes.copy_(stream.input_ids.clamp(ids.low, ids.high).view(num_rows, seq_len))
        if ids.offset:
            codes.sub_(ids.offset)
    else:
        codes.copy_(stream.token_types.view(num_rows, seq_len))
    if stream.kept is not None:
        codes.mul_(stream.kept.view(num_rows, seq_len))
    here = padded[1:]
    changed = here != padded[:-1]
    other = (here ^ ids.image).bool() if by_id else here.bool().logical_not_()
    if not bool(other[seq_len - 1 :: stride].all()):
        return None

    changes = set_indices(changed)
    values = here.index_select(0, changes)
    at = set_indices(values == ids.image if by_id else values.bool())
    starts = changes.index_select(0, at)
    lengths = changes[1:].index_select(0, at) - starts
    rows = starts // stride if num_rows > 1 else None
    if by_id:
        is_video = _is_video(ids, spec, changes, values, at, rows, stride)
    else:
        is_video = values.index_select(0, at) == VIDEO
    if rows is not None:
        starts -= rows
    steps = changed.logical_or_(other).as_strided((num_rows, seq_len), (stride, 1))
    return FrameRuns(starts, lengths, is_video, steps)


def set_indices(flags: Tensor) -> Tensor:
    """Return the ascending indices at which `flags` (N,) bool is set."""
    num_words = flags.shape[0] // 8
    if num_words < 512:
        return flags.nonzero().view(-1)
    # Most flags are not set, and eight at a time are passed over faster.
    whole = flags[: num_words * 8]
    words = whole.view(torch.int64).nonzero().view(-1)
    word, place = whole.view(-1, 8).index_select(0, words).nonzero().unbind(1)
    tail = flags[num_words * 8 :].nonzero().view(-1)
    return torch.cat((words.index_select(0, word) * 8 + place, tail + num_words * 8))


class _Codes(NamedTuple):
    """The ids that matter, clamped to `low` and `high`, cast, less `offset`; text is 0."""

    low: int
    high: int
    dtype: torch.dtype
    offset: int
    image: int
    video_start: int
    video_end: int


@lru_cache
def _codes(spec: MRopeSpec) -> _Codes:
    ids = (spec.image_token_id, spec.video_start_token_id, spec.video_end_token_id)
    low, high = min(ids) - 1, max(ids) + 1
    if high - low < 256:
        # The cast keeps the last eight bits. From a multiple of 256 on they count from 0.
        block = low - low % 256
        if high - block < 256:
            low = block
        offset, dtype = low % 256, torch.uint8
    else:
        offset, dtype = low, torch.int64
    return _Codes(low, high, dtype, offset, *(token_id - low for token_id in ids))


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
        order = torch.arange(1, changes.shape[0] + 1)
        last_open, last_close = (markers * order).cummax(1).values.index_select(1, at).unbind()
        return last_open > last_close
    # The columns between rows are counted too; what has been counted before a row is taken off.
    counts = (markers[:, :-1] * changes.diff()).cumsum(1)
    depth = counts[0] - counts[1]
    if rows is None:
        return depth.index_select(0, at) > 0
    first = torch.searchsorted(changes, rows * stride)
    return depth.index_select(0, at) > torch.nn.functional.pad(depth, (1, 0))[first]
