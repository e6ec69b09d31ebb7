"""The commonest prompt of few placeholders, where an operator on them is hardly any work.

One row without padding, images and frames all of one size, at most one video. The placeholders'
indices, found once, are then a matrix of one row a frame, and all sizes are numbers. Prompts with
more of them, or laid out otherwise, are for `regular_rope_index`.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from itertools import accumulate, compress
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.spec import MRopeSpec

# Placeholders beyond which to address each of them takes longer than passes over all tokens.
_FEW = 4096
# Tokens from which on passes over single bytes find the ids that matter faster.
_BYTES_FROM = 6 * 1024
# Runs of one id, or of ids that do not matter, beyond which to read them one by one takes too long.
_MAX_RUNS = 1024
# Placeholders, the start of a video, and its end.
_KINDS = [0, 1, 2]


def short_rope_index(
    input_ids: Tensor,
    spec: MRopeSpec,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    """Return the positions and deltas of such a prompt, or None for any other.

    An answer means that the grids are well-formed and fit: they need no further check.

    Args:
        input_ids: (B, T), on a CPU, at least one token, none masked.
        spec: the family's rules.
        image_grid_thw: (num_images, 3), or None.
        video_grid_thw: (num_videos, 3), or None.

    Returns:
        (3, 1, T) in the dtype of `input_ids`, and (1, 1) int64.
    """
    num_rows, seq_len = input_ids.shape
    if num_rows > 1:
        return None
    images = [] if image_grid_thw is None else image_grid_thw.tolist()
    videos = [] if video_grid_thw is None else video_grid_thw.tolist()
    if not images and not videos:
        return _text_only(input_ids, spec)
    size = (images or videos)[0][1:]
    if len(videos) > 1 or (videos and videos[0][1:] != size):
        return None
    if images.count([1, *size]) != len(images):
        return None
    merge = spec.spatial_merge_size
    height, width = size[0] // merge, size[1] // merge
    if min(height, width) < 1 or size[0] % merge or size[1] % merge:
        return None
    area, span = height * width, max(height, width)
    num_video_frames = videos[0][0] if videos else 0
    num_frames = len(images) + num_video_frames
    num_placeholders = num_frames * area
    if num_video_frames < len(videos) or num_placeholders > max(_FEW, seq_len // 32):
        return None

    positions = None
    if seq_len < _BYTES_FROM or max(spec.markers) - min(spec.markers) > 253:
        found = _find(input_ids, spec, num_frames, area, len(videos))
    else:
        positions = input_ids.new_empty((3, 1, seq_len))
        found = _find_by_bytes(input_ids, spec, num_frames, area, positions[0])
    if found is None:
        return None
    frames, starts, ends, markers = found
    # Ascending indices are consecutive in every frame if they are in the sum. None may touch.
    if sum(ends) - sum(starts) != num_placeholders or not set(starts).isdisjoint(ends):
        return None
    if ends[-1] == seq_len or len(markers) != 2 * len(videos):
        return None
    if videos:
        opens, closes = markers
        if bisect_left(starts, closes) - bisect_left(starts, opens) != num_video_frames:
            return None

    # Each axis counts up by one from token to token, but time and height stand still in a frame;
    # then what differs at a frame's start, at its later lines and behind it.
    if positions is None:
        positions = input_ids.new_full((3, 1, seq_len), 1)
    else:
        positions.fill_(1)
    axes = positions.view(3, seq_len)
    axes[:2].index_fill_(1, frames.reshape(-1), 0)
    lines = frames[:, :1] + torch.arange(0, area + 1, width, device=input_ids.device)
    later = height - 1
    steps = [1, *[0] * later, span]
    steps += [1, *[1] * later, span - height + 1]
    steps += [1, *[1 - width] * later, span - width + 1]
    axes[:, lines] = input_ids.new_tensor(steps).view(3, 1, height + 1)
    axes[:, 0].zero_()
    positions.cumsum_(2)
    rope_deltas = input_ids.new_full((1, 1), num_frames * (span - area), dtype=torch.int64)
    return positions, rope_deltas


class _Found(NamedTuple):
    frames: Tensor  # (F, area) token indices
    starts: list[int]
    ends: list[int]
    markers: list[int]  # token indices of the one start of a video and of its end, if there are any


def _find(
    input_ids: Tensor, spec: MRopeSpec, num_frames: int, area: int, num_videos: int
) -> _Found | None:
    """Return where frames and markers stand, or None if there are not as many or other ones."""
    num_placeholders = num_frames * area
    found = (input_ids == _ids(spec, input_ids.dtype)).nonzero()
    if found.shape[0] != num_placeholders + 2 * num_videos:
        return None
    (kind, _), *markers = found[num_placeholders - 1 :].tolist()
    if [kind, *(kind for kind, _ in markers)] != _KINDS[: 1 + 2 * num_videos]:
        return None
    frames = found[:num_placeholders, 1].view(num_frames, area)
    ends = (frames[:, -1] + 1).tolist()
    return _Found(frames, frames[:, 0].tolist(), ends, [at for _, at in markers])


def _find_by_bytes(
    input_ids: Tensor, spec: MRopeSpec, num_frames: int, area: int, scratch: Tensor
) -> _Found | None:
    """Return the same, found in passes over single bytes; `scratch`, like the ids, is overwritten.

    It takes a prompt of many frames, or in which many ids are close to those of the markers, for
    one of another layout.
    """
    below = min(spec.markers) - 1
    codes = torch.clamp(input_ids, below, max(spec.markers) + 1, out=scratch).to(torch.uint8)
    values, lengths = torch.unique_consecutive(codes, return_counts=True)
    if values.shape[0] > _MAX_RUNS:
        return None
    kinds, counts = values.tolist(), lengths.tolist()
    image, start, end = (marker % 256 for marker in spec.markers)
    is_frame = [*map(image.__eq__, kinds)]
    if [*compress(counts, is_frame)] != [area] * num_frames:
        return None
    run_ends = [*accumulate(counts)]
    markers = []
    if start in kinds:
        if (kinds.count(start), kinds.count(end)) != (1, 1):
            return None
        runs = kinds.index(start), kinds.index(end)
        if [counts[run] for run in runs] != [1, 1]:
            return None
        markers = [run_ends[run] - 1 for run in runs]
    ends = [*compress(run_ends, is_frame)]
    places = torch.arange(-area, 0, device=codes.device)
    frames = torch.tensor(ends, device=codes.device).unsqueeze(1) + places
    return _Found(frames, [*map(area.__rsub__, ends)], ends, markers)


@lru_cache
def _ids(spec: MRopeSpec, dtype: torch.dtype) -> Tensor:
    """Return the ids that matter, (3, 1), in the order of their kinds."""
    return torch.tensor([[token_id] for token_id in spec.markers], dtype=dtype, device="cpu")


def _text_only(input_ids: Tensor, spec: MRopeSpec) -> tuple[Tensor, Tensor] | None:
    image, _, _ = spec.markers
    if bool((input_ids == image).any()):
        return None
    index = torch.arange(input_ids.shape[1], dtype=input_ids.dtype, device=input_ids.device)
    rope_deltas = torch.zeros((1, 1), dtype=torch.int64, device=input_ids.device)
    return index.expand(3, 1, -1).contiguous(), rope_deltas
