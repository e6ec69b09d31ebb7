"""The commonest short prompt, where a tensor operator costs its dispatch and hardly any work.

One row without padding, images and frames all of one size, at most one video. The placeholders'
indices, found once, are then a matrix of one row a frame, and all sizes are numbers. Prompts that
are longer, or laid out otherwise, are for `regular_rope_index`; text alone may be of any length.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

import torch
from torch import Tensor

from vecrope.spec import MRopeSpec

# Tokens and placeholders together; beyond, passes over single bytes are faster.
MAX_TOKENS = 24 * 1024
_PLACEHOLDER, _VIDEO_START, _VIDEO_END = 0, 1, 2


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
    if num_video_frames < len(videos) or seq_len + num_placeholders > MAX_TOKENS:
        return None

    found = (input_ids == _ids(spec, input_ids.dtype)).nonzero()
    if found.shape[0] != num_placeholders + 2 * len(videos):
        return None
    (kind, last), *markers = found[num_placeholders - 1 :].tolist()
    if kind != _PLACEHOLDER or last == seq_len - 1:
        return None
    placeholders = found[:num_placeholders, 1]
    frames = placeholders.view(num_frames, area)
    starts = frames[:, 0].tolist()
    ends = (frames[:, -1] + 1).tolist()
    # Ascending indices are consecutive in every frame if they are in the sum. None may touch.
    if sum(ends) - sum(starts) != num_placeholders or not set(starts).isdisjoint(ends):
        return None
    if videos:
        (opening, opens), (closing, closes) = markers
        if (opening, closing) != (_VIDEO_START, _VIDEO_END):
            return None
        if bisect_left(starts, closes) - bisect_left(starts, opens) != num_video_frames:
            return None

    # Each axis counts up by one from token to token, but time and height stand still in a frame;
    # then what differs at a frame's start, at its later lines and behind it.
    positions = input_ids.new_full((3, 1, seq_len), 1)
    axes = positions.view(3, seq_len)
    axes[:2, placeholders] = 0
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
