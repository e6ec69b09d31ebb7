"""The commonest short prompt of the families whose videos have an id of their own.

As in `vecrope.short` a tensor operator costs its dispatch here, and hardly any work. One row
without padding, images all of one size and of one frame, and at most one video, of any size and any
number of frames, be it a block or frames.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.blocks import seconds_are_sound
from vecrope.core.items import temporal_offset, video_pace
from vecrope.spec import MRopeSpec

# Tokens and placeholders together; beyond, passes over single bytes are faster.
_MAX_TOKENS = 24 * 1024


class _Blocks(NamedTuple):
    """Blocks of one kind, all of the same size, in tokens, and by how much each moves on."""

    number: int
    depth: int
    height: int
    width: int
    span: int
    offsets: Tensor | None  # (depth,) temporal offsets of a block's frames; None: there is one

    @property
    def area(self) -> int:
        return self.depth * self.height * self.width


class _Places(NamedTuple):
    lines: Tensor  # (number, lines of a block + 1) token index of each line, and behind the block
    starts: list[int]
    ends: list[int]


def short_by_ids_rope_index(
    input_ids: Tensor,
    spec: MRopeSpec,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    seconds: Tensor | Sequence[float] | None,
) -> tuple[Tensor, Tensor] | None:
    """Return the positions and deltas of such a prompt, or None for any other.

    An answer means that grids and seconds are well-formed and fit: they need no further check.

    Args:
        input_ids: (B, T), on a CPU, at least one token, none masked.
        spec: of a family that tells videos by their id.
        image_grid_thw: (num_images, 3), or None.
        video_grid_thw: (num_videos, 3), or None.
        seconds: (num_videos,) as `second_per_grid_ts`.

    Returns:
        (3, 1, T) in the dtype of `input_ids`, and (1, 1) int64.
    """
    num_rows, seq_len = input_ids.shape
    if num_rows > 1 or seq_len > _MAX_TOKENS or spec.image_token_id is None:
        return None
    images = [] if image_grid_thw is None else image_grid_thw.tolist()
    videos = [] if video_grid_thw is None else video_grid_thw.tolist()
    kinds = _kinds(spec, images, videos, seconds)
    if kinds is None:
        return None
    totals = [blocks.number * blocks.area for blocks in kinds]
    if seq_len + sum(totals) > _MAX_TOKENS:
        return None
    found = (input_ids == _ids(spec, input_ids.dtype)).nonzero()
    if found.shape[0] != sum(totals):
        return None
    # All tokens of the first kind come first, whatever stands between them in the prompt.
    if int(found[:, 0].sum()) != (totals[-1] if videos else 0):
        return None
    indices = found[:, 1]
    parts = (indices[: totals[0]], indices[totals[0] :])
    places = [_places(part, blocks) for part, blocks in zip(parts, kinds, strict=False)]
    starts = [*chain.from_iterable(place.starts for place in places)]
    ends = [*chain.from_iterable(place.ends for place in places)]
    # Ascending indices are consecutive in every block if they are in the sum. None may touch.
    if sum(ends) - sum(starts) != sum(totals) or not set(starts).isdisjoint(ends):
        return None
    if max(ends) == seq_len or not _announced(input_ids, spec, starts):
        return None

    positions = input_ids.new_full((3, 1, seq_len), 1)
    axes = positions.view(3, seq_len)
    axes[:2, indices] = 0
    for blocks, place in zip(kinds, places, strict=True):
        axes[:, place.lines] = _steps(blocks, input_ids)
    axes[:, 0].zero_()
    positions.cumsum_(2)
    moved = [blocks.span - blocks.area for blocks in kinds]
    delta = sum(blocks.number * move for blocks, move in zip(kinds, moved, strict=True))
    video = kinds[-1]
    if video.offsets is not None:
        # The last frame can reach further than the prompt goes on.
        start = places[-1].starts[0]
        if images:
            start += bisect_left(places[0].starts, start) * moved[0]
        delta = max(delta, start + int(video.offsets[-1]) + 1 - seq_len)
    return positions, input_ids.new_full((1, 1), delta, dtype=torch.int64)


def _kinds(
    spec: MRopeSpec,
    images: list[list[int]],
    videos: list[list[int]],
    seconds: Tensor | Sequence[float] | None,
) -> list[_Blocks] | None:
    """Return the images and the video as blocks, or None if there is none or they do not suit."""
    if not images and not videos:
        return None
    if len(videos) > 1 or (images and (images[0][0] != 1 or images.count(images[0]) < len(images))):
        return None
    merge = spec.spatial_merge_size
    kinds = []
    for grids in (images, videos):
        if not grids:
            continue
        frames, height, width = grids[0]
        if height % merge or width % merge or min(grids[0]) < 1:
            return None
        height, width = height // merge, width // merge
        number, span, offsets = len(grids), max(height, width), None
        if grids is videos:
            if spec.video_time == "seconds" and not seconds_are_sound(spec, seconds, frames):
                return None
            frames //= spec.temporal_merge_size
            # The offsets of more would take memory that no prompt asks for.
            if not 0 < frames <= _MAX_TOKENS:
                return None
            if spec.separate_frames:
                number, frames = frames, 1
        if frames > 1:
            offsets = _offsets(spec, frames, seconds)
            if spec.span_rule == "thw":
                span = max(span, int(offsets[-1]) + 1)
        kinds.append(_Blocks(number, frames, height, width, span, offsets))
    return kinds


def _offsets(spec: MRopeSpec, frames: int, seconds: Tensor | Sequence[float] | None) -> Tensor:
    """Return the temporal offsets of the frames of the one video."""
    number = torch.arange(frames, device="cpu")
    if spec.video_time == "frames":
        return number
    return temporal_offset(number, video_pace(1, spec, seconds, number.device))


def _places(indices: Tensor, blocks: _Blocks) -> _Places:
    tokens = indices.view(blocks.number, blocks.area)
    step = torch.arange(0, blocks.area + 1, blocks.width, device=indices.device)
    ends = (tokens[:, -1] + 1).tolist()
    return _Places(tokens[:, :1] + step, tokens[:, 0].tolist(), ends)


def _announced(input_ids: Tensor, spec: MRopeSpec, starts: list[int]) -> bool:
    """Say whether the marker that the spec asks for stands right before each block."""
    if spec.marker_rule != "adjacent":
        return True
    if not min(starts):
        return False
    before = input_ids[0, torch.tensor(starts, device="cpu") - 1].tolist()
    return before.count(spec.vision_start_token_id) == len(starts)


def _steps(blocks: _Blocks, input_ids: Tensor) -> Tensor:
    """Return (3, 1, lines + 1): by how much each axis moves at each line, and behind the block.

    Time and height stand still from token to token of a line.
    """
    _, depth, height, width, span, offsets = blocks
    later = height - 1
    if offsets is None:
        steps = [1, *[0] * later, span]
        steps += [1, *[1] * later, span - later]
        steps += [1, *[1 - width] * later, span - width + 1]
        return input_ids.new_tensor(steps).view(3, 1, height + 1)
    lines = input_ids.new_zeros((3, depth, height))
    lines[0, 1:, 0] = offsets.diff()
    lines[1].fill_(1)
    lines[1, 1:, 0].fill_(-later)
    lines[2].fill_(1 - width)
    lines[:, 0, 0].fill_(1)
    behind = [[span - int(offsets[-1])], [span - later], [span - width + 1]]
    return torch.cat((lines.view(3, -1), input_ids.new_tensor(behind)), 1).unsqueeze(1)


@lru_cache
def _ids(spec: MRopeSpec, dtype: torch.dtype) -> Tensor:
    """Return the ids of placeholders, (1, 1) or (2, 1)."""
    ids = [spec.image_token_id, spec.video_token_id]
    return torch.tensor([[i] for i in ids if i is not None], dtype=dtype, device="cpu")
