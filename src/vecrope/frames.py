"""The runs of placeholders in a batch, found on a CPU in passes over single bytes.

An id is clamped to the range of the ids that matter and then fits a byte, so that all but the first
passes read and write an eighth of the ids' size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.spec import MRopeSpec

MASKED = 0


class RunTable(NamedTuple):
    """K maximal runs of one code in the batch, row after row.

    With more than one row a column stands behind each, so that no placeholders and no masked tokens
    go on into the next row. Text may: a column is text to it.
    """

    values: Tensor  # (K,) codes
    lengths: Tensor  # (K,) int64, columns included
    ends: Tensor  # (K,) sums of `lengths`


class FrameRuns(NamedTuple):
    """F maximal runs of placeholders of one kind, in the stream's order."""

    at: Tensor  # (F, 1) row of the table
    starts: Tensor  # (F, 1) int64 token indices
    ends: Tensor  # (F, 1) first token behind
    is_video: Tensor | None  # (F, 1) bool; None: none is a video's
    text: Tensor  # (B, T) bool, or bytes of 0 and 1: everything but placeholders
    table: RunTable


def find_frame_runs(
    input_ids: Tensor,
    spec: MRopeSpec,
    kept: Tensor | None,
    token_types: Tensor | None,
    scratch: Tensor,
    *,
    expect_video: bool,
) -> FrameRuns | None:
    """Return the runs of a padded batch, or None if one of placeholders ends its row.

    Args:
        input_ids: (B, T), on a CPU, at least one token.
        spec: the ids that matter.
        kept: (B, T) bool, True = token; None: every one is.
        token_types: (B, T), to be read instead of the ids.
        scratch: (B, T) in the dtype of `input_ids`, overwritten: memory fresh from the system
            costs more than the arithmetic on it.
        expect_video: whether there are grids of videos. It saves a look for their markers.
    """
    num_rows, seq_len = input_ids.shape
    rule = _codes_of_ids(spec) if token_types is None else _CODES_OF_TYPES
    tokens = token_types
    if tokens is None:
        tokens = torch.clamp(input_ids, rule.low, rule.high, out=scratch)
    stride = seq_len
    if num_rows > 1:
        # A column behind each row, so that no run goes on into the next one.
        stride += 1
        columns = input_ids.new_full((num_rows, stride), rule.column, dtype=rule.dtype)
        codes = columns[:, :seq_len]
        codes.copy_(tokens)
    else:
        columns = codes = tokens.to(rule.dtype, copy=True)
    if rule.offset:
        codes.sub_(rule.offset)
    if kept is not None:
        codes.mul_(kept)

    values, lengths = torch.unique_consecutive(columns, return_counts=True)
    table = RunTable(values, lengths, lengths.cumsum(0))
    if token_types is None:
        visual = values == rule.image
        text = codes.bitwise_xor_(rule.image).bool()
    else:
        visual = values >= rule.image
        text = codes.bitwise_and_(rule.image).logical_not_()
    if not bool(text[:, -1].all()):
        return None
    at = visual.nonzero()
    ends = table.ends.take(at)
    starts = ends - lengths.take(at)
    rows = starts // stride if num_rows > 1 else None
    if token_types is not None:
        is_video = values.take(at) > rule.image
    else:
        row_starts = None if rows is None else rows * stride
        is_video = _is_video(rule, spec, table, at, row_starts, expect_video)
    if rows is not None:
        starts -= rows
        ends -= rows
    return FrameRuns(at, starts, ends, is_video, text, table)


def types_of_ids(input_ids: Tensor, spec: MRopeSpec, scratch: Tensor) -> Tensor:
    """Return (B, T) uint8 types by the ids of images and videos: 0 text, 1 image, 2 video.

    Args:
        input_ids: (B, T), on a CPU.
        spec: of a family whose videos have an id of their own, or none.
        scratch: (B, T) in the dtype of `input_ids`, overwritten.
    """
    image, video = spec.image_token_id, spec.video_token_id
    assert image is not None
    if video is None:
        return (input_ids == image).view(torch.uint8)
    if abs(image - video) > 1:
        return (input_ids == image).view(torch.uint8).add_(input_ids == video, alpha=2)
    # Ids below become 0, these two 1 and 2, ids above 3; the last are text as the first are.
    below = min(image, video) - 1
    types = torch.clamp(input_ids, below, below + 3, out=scratch).to(torch.uint8)
    types.sub_(below % 256)
    if image > video:
        types.bitwise_xor_(3)
    return types.sub_((types >> 1).bitwise_and_(types), alpha=3)


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
    ids = spec.markers
    # Any other id is clamped to the one below or above these.
    zero, high = min(ids) - 2, max(ids) + 1
    offset, dtype = zero, torch.int32
    if high - zero < 256:
        # The cast keeps the last eight bits. From a multiple of 256 on they count from 0.
        block = zero - zero % 256
        if high - block < 256:
            zero = block
        offset, dtype = zero % 256, torch.uint8
    image, video_start, video_end = (token_id - zero for token_id in ids)
    # By the last marker a column ends a video; to a count of markers it is text.
    column = video_end if spec.marker_rule == "last" else high - zero
    return _Codes(min(ids) - 1, high, dtype, offset, column, image, video_start, video_end)


@lru_cache
def _marker_codes(rule: _Codes) -> Tensor:
    codes = [[rule.video_start], [rule.video_end]]
    return torch.tensor(codes, dtype=rule.dtype, device="cpu")


# Types are 0, 1 and 2 for text, image and video; the codes are one more. 2 and 3 share a bit.
_CODES_OF_TYPES = _Codes(0, 2, torch.uint8, -1, 1, 2, -1, -1)


def _is_video(
    rule: _Codes,
    spec: MRopeSpec,
    table: RunTable,
    at: Tensor,
    row_starts: Tensor | None,
    expect_video: bool,
) -> Tensor | None:
    """Say which of the runs `at` (F, 1) are a video's, (F, 1) bool; None for none."""
    markers = table.values == _marker_codes(rule)
    if not expect_video and not bool(markers[0].any()):
        return None
    if spec.marker_rule == "last":
        last_open, last_close = (markers * table.ends).cummax(1).values.unbind()
        return (last_open > last_close).take(at)
    opened, closed = (markers * table.lengths).cumsum(1).unbind()
    depth = opened - closed
    if row_starts is None:
        return depth.take(at) > 0
    # The column before a row counts no marker, and no run of markers crosses it.
    column = torch.searchsorted(table.ends, row_starts - 1, right=True)
    return depth.take(at) > pad(depth, (1, 0)).take(column)
