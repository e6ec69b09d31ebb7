"""SGLang's function for GLM-4V."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from vecrope.integrations.arguments import number_text, ones_of
from vecrope.integrations.sglang.arguments import Grids, remembered, rope_index_of_used
from vecrope.spec import MRopeSpec

_GLM4V = MRopeSpec.for_model("glm4v", convention="sglang")


def get_rope_index_glm4v(
    input_ids: Tensor | None,
    hf_config: Any,
    image_grid_thw: Grids,
    video_grid_thw: Grids,
    attention_mask: Tensor | None,
    **kwargs: Any,  # noqa: ARG001 - SGLang takes and ignores them
) -> tuple[Tensor, Tensor]:
    """Return the M-RoPE position ids and deltas that SGLang's function of this name returns.

    As there, grids that no token asks for are ignored, frames of the last video among them; a
    height or width that `spatial_merge_size` does not divide is rounded down; and without any grid
    (both arguments None) all tokens are text, whatever their ids.

    Args:
        input_ids: (B, T) int64. May be None where there is an `attention_mask`.
        hf_config: has the attributes `image_token_id`, `video_start_token_id`,
            `video_end_token_id` and `vision_config.spatial_merge_size`. Not read without grids.
        image_grid_thw: (num_images, 3) integers in patches, in the order of the prompt, as a tensor
            on any device or as nested lists; may be empty.
        video_grid_thw: (num_videos, 3) likewise.
        attention_mask: (B, T) of any dtype and on any device; None: all are tokens. With grids, a
            value of 1 is a token and any other is not. Without, 0 is none, and every other value
            is added to the count that is the position.
        **kwargs: ignored.

    Returns:
        `position_ids` (3, B, T) and `rope_deltas` (B, 1).

        With a grid: in the dtype and on the device of `input_ids`, 1 at masked tokens; and int64,
        the row's largest position plus one, less T.

        Without grids, with a mask: int64 on the mask's device, 1 at masked tokens; and int64, the
        row's largest position plus one, less T. That 1 counts as a position here, so that a row of
        one token has a delta of 2 - T if anything in it is masked, and a row of none likewise.

        Without grids and mask: int64, 0 to T - 1 in every row; and zeros in the dtype of
        `input_ids`, both on its device.

        Without grids `position_ids` is one (B, T) or (T,) tensor seen three times over. Neither
        aliases an input. The call synchronises with the device wherever there is a grid.

    Raises:
        TypeError: for an argument of the wrong type or dtype, floating-point grids among them,
            which SGLang truncates.
        ValueError: for shapes or values that do not fit. Where only the sums of a row's tokens and
            grids fit, but not each run of placeholders its grids, SGLang answers with positions
            that belong to other tokens; here that is an error. So is a mask that has another shape
            than `input_ids`.

    Where SGLang raises although there is an answer, this returns it: for int32 `input_ids` with
    grids, for rows without an unmasked token, for images and frames with nothing between them, for
    grid rows of zeros, which are no item, and for T = 0. For B = 0 the deltas are int64 and not
    floating-point.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from vecrope.integrations.sglang import get_rope_index_glm4v
        >>> config = SimpleNamespace(
        ...     image_token_id=9, video_start_token_id=7, video_end_token_id=8,
        ...     vision_config=SimpleNamespace(spatial_merge_size=2),
        ... )
        >>> position_ids, rope_deltas = get_rope_index_glm4v(
        ...     torch.tensor([[0, 5, 9, 9, 6]]), config, [[1, 2, 4]], None,
        ...     torch.tensor([[0, 1, 1, 1, 1]]),
        ... )
        >>> position_ids[:, 0]
        tensor([[1, 0, 1, 1, 3],
                [1, 0, 1, 1, 3],
                [1, 0, 1, 2, 3]])
        >>> rope_deltas
        tensor([[-1]])
    """
    if input_ids is None or (image_grid_thw is None and video_grid_thw is None):
        position_ids, rope_deltas = number_text(input_ids, attention_mask)
        if input_ids is not None and position_ids.shape[1:] != input_ids.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_ids {tuple(input_ids.shape)}, "
                f"got {tuple(position_ids.shape[1:])}"
            )
        return position_ids, rope_deltas
    spec = _spec_of(
        hf_config.image_token_id,
        hf_config.video_start_token_id,
        hf_config.video_end_token_id,
        hf_config.vision_config.spatial_merge_size,
    )
    mask = ones_of(attention_mask)
    return rope_index_of_used(input_ids, spec, image_grid_thw, video_grid_thw, attention_mask=mask)


@remembered
def _spec_of(image: int, video_start: int, video_end: int, merge_size: int) -> MRopeSpec:
    return replace(
        _GLM4V,
        image_token_id=image,
        video_start_token_id=video_start,
        video_end_token_id=video_end,
        spatial_merge_size=merge_size,
    )
