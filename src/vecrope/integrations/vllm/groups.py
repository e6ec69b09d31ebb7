"""The positions of a prompt of which vLLM's models say where each grid begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vecrope.core.modality import IMAGE, VIDEO
from vecrope.plans.placeholders import get_rope_index_from_placeholders
from vecrope.spec import MRopeSpec

# One grid of positions (an image, a video that is a block, or a frame): the index of its first
# token, frames, rows and columns in tokens, and positions from one frame to the next; 1 if left
# out.
Group = tuple[int, int, int, int] | tuple[int, int, int, int, float]

# Groups are in tokens, their paces in positions; rounded as vLLM rounds them, in float64.
_SPEC = MRopeSpec.for_model(
    "qwen2_5_vl",
    convention="vllm",
    spatial_merge_size=1,
    tokens_per_second=1.0,
    multi_frame_images=True,
)


def positions_of_groups(num_tokens: int, groups: Sequence[Group]) -> tuple[Tensor, int]:
    """Return the M-RoPE positions of a prompt of text and of groups.

    Args:
        num_tokens: tokens of the prompt, N, at least one.
        groups: tuples of offset, frames, height, width and, for what is spaced in time, positions
            from one frame to the next, whose multiples are rounded down. Ascending, and none
            reaches into the next.

    Returns:
        (3, N) int64 on the CPU, and the row's largest position plus one, less N.

    Raises:
        ValueError: for groups that do not fit the prompt, or no tokens.

    Example:
        >>> from vecrope.integrations.vllm import positions_of_groups
        >>> position_ids, delta = positions_of_groups(6, [(1, 2, 1, 2, 1.5)])
        >>> position_ids
        tensor([[0, 1, 1, 2, 2, 3],
                [0, 1, 1, 1, 1, 3],
                [0, 1, 2, 1, 2, 3]])
        >>> delta
        -2
    """
    if num_tokens < 1:
        raise ValueError(f"a prompt must have one token at least, got {num_tokens}")
    if not groups:
        return torch.arange(num_tokens).repeat(3, 1), 0
    table = torch.tensor([group[:4] for group in groups])
    grids = table[:, 1:]
    modalities, seconds, videos = torch.full((len(groups),), IMAGE), None, None
    # To be numbered as images, whose frames are one position apart, costs less.
    paces = [group[4] if len(group) == 5 and group[1] > 1 else 1.0 for group in groups]
    if any(pace != 1.0 for pace in paces):
        pace = torch.tensor(paces, dtype=torch.float64)
        timed = pace != 1.0
        modalities.masked_fill_(timed, VIDEO)
        grids, videos, seconds = grids[~timed], grids[timed], pace[timed]
    position_ids, rope_deltas = get_rope_index_from_placeholders(
        num_tokens,
        _SPEC,
        offsets=table[:, 0],
        lengths=table[:, 1:].prod(1),
        modalities=modalities,
        image_grid_thw=grids,
        video_grid_thw=videos,
        second_per_grid_ts=seconds,
    )
    return position_ids, int(rope_deltas)
