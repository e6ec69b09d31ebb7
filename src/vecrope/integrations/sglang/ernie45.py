"""SGLang's function for ERNIE-4.5-VL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from vecrope.integrations.sglang.arguments import (
    Grids,
    remembered,
    rope_index_of_used,
    text_rope_index,
)
from vecrope.spec import MRopeSpec

_ERNIE = MRopeSpec.for_model("ernie4_5_vl_moe", convention="sglang")


def get_rope_index_ernie45(
    input_ids: Tensor,
    hf_config: Any,
    image_grid_thw: Grids,
    video_grid_thw: Grids,
    **kwargs: Any,  # noqa: ARG001 - SGLang takes and ignores them
) -> tuple[Tensor, Tensor]:
    """Return the M-RoPE position ids and deltas that SGLang's function of this name returns.

    As there, grids that no token asks for are ignored; a size that the merge size does not divide
    is rounded down; there is no mask, and padding is numbered as text; and without any grid (both
    arguments None) all tokens are text, whatever their ids.

    Args:
        input_ids: (B, T) int64 or int32.
        hf_config: has the attributes `im_patch_id`, `video_start_token_id`, `video_end_token_id`,
            `spatial_conv_size` and `temporal_conv_size`. Not read without grids.
        image_grid_thw: (num_images, 3) integers in patches, in the order of the prompt, as a tensor
            on any device or as nested lists; may be empty.
        video_grid_thw: (num_videos, 3) likewise.
        **kwargs: ignored.

    Returns:
        `position_ids` (3, B, T) in the dtype of `input_ids`, and `rope_deltas` (B, 1) int64, the
        row's largest position plus one, less T. Without grids (3, 1, T) and (1, 1), both int64,
        whatever the number of rows. Neither aliases an input. The call synchronises with the device
        wherever there is a grid.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes or values that do not fit. Where only the sums of a row's tokens and
            grids fit, but not each run of placeholders its grid, SGLang answers with positions that
            belong to other tokens; here that is an error.

    Where SGLang raises although there is an answer, this returns it: for grids as nested lists, for
    images or videos with nothing between them, for grid rows of zeros, which are no item, and for
    T = 0. For B = 0 the deltas are int64 and not floating-point.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from vecrope.integrations.sglang import get_rope_index_ernie45
        >>> config = SimpleNamespace(
        ...     im_patch_id=9, video_start_token_id=7, video_end_token_id=8,
        ...     spatial_conv_size=2, temporal_conv_size=2,
        ... )
        >>> position_ids, rope_deltas = get_rope_index_ernie45(
        ...     torch.tensor([[7, 9, 9, 8, 5]]), config, None, torch.tensor([[4, 2, 2]])
        ... )
        >>> position_ids[:, 0]
        tensor([[0, 1, 2, 3, 4],
                [0, 1, 1, 3, 4],
                [0, 1, 1, 3, 4]])
        >>> rope_deltas
        tensor([[0]])
    """
    if input_ids is None or (image_grid_thw is None and video_grid_thw is None):
        return text_rope_index(input_ids)
    spec = _spec_of(
        hf_config.im_patch_id,
        hf_config.video_start_token_id,
        hf_config.video_end_token_id,
        hf_config.spatial_conv_size,
        hf_config.temporal_conv_size,
    )
    return rope_index_of_used(input_ids, spec, image_grid_thw, video_grid_thw)


@remembered
def _spec_of(
    image: int, video_start: int, video_end: int, merge_size: int, temporal_merge_size: int
) -> MRopeSpec:
    return replace(
        _ERNIE,
        image_token_id=image,
        video_start_token_id=video_start,
        video_end_token_id=video_end,
        spatial_merge_size=merge_size,
        temporal_merge_size=temporal_merge_size,
    )
