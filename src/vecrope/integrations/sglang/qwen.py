"""SGLang's function for the families of Qwen-VL, and those that are numbered as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vecrope.integrations.arguments import as_seconds
from vecrope.integrations.sglang.arguments import (
    Grids,
    remembered,
    rope_index_of_used,
    text_rope_index,
)
from vecrope.integrations.sglang.qwen3_omni import get_rope_index_qwen3_omni
from vecrope.spec import MRopeSpec

# Model types that SGLang's function numbers as those of another name.
_NUMBERED_AS = {"intern_s2_preview": "qwen2_vl", "interns2_mobius": "qwen3_vl"}
# What spaces the frames of a video by seconds.
_TIMED = ("qwen2_5_vl", "paddleocr_vl")
MODEL_TYPES = (
    *_TIMED,
    *("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp"),
    *("cosmos3_omni", "cosmos3_edge", *_NUMBERED_AS),
)
# Of a prompt of one video that is spaced so, SGLang has the positions sooner below this.
_LEAST_TOKENS = 8192


def get_rope_index(
    spatial_merge_size: int,
    image_token_id: int,
    video_token_id: int,
    vision_start_token_id: int,
    model_type: str,
    tokens_per_second: int | None = None,
    input_ids: Tensor | None = None,
    image_grid_thw: Grids = None,
    video_grid_thw: Grids = None,
    second_per_grid_ts: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Return the M-RoPE position ids and deltas that SGLang's function of this name returns.

    As there, grids and seconds that no token asks for are ignored; a height or width that
    `spatial_merge_size` does not divide is rounded down; there is no mask, and padding is numbered
    as text; and without any grid (both arguments None) all tokens are text, whatever their ids.

    Args:
        spatial_merge_size: patches per token along each spatial side.
        image_token_id: the placeholder of images.
        video_token_id: the placeholder of videos; None or negative: there is none.
        vision_start_token_id: the token right before every image, video or separate frame.
        model_type: `qwen2_vl`, `qwen2_5_vl`, `paddleocr_vl`, `qwen3_vl`, `qwen3_vl_moe`, `qwen3_5`,
            `qwen3_5_moe`, `qwen4_exp`, `cosmos3_omni`, `cosmos3_edge`, `intern_s2_preview`,
            `interns2_mobius`; or `qwen3_omni_moe`, which `get_rope_index_qwen3_omni` answers. Not
            looked at without grids, but for that one.
        tokens_per_second: positions a second, of `qwen2_5_vl` and `paddleocr_vl`.
        input_ids: (B, T) int64 or int32.
        image_grid_thw: (num_images, 3) integers in patches, in the order of the prompt, as a tensor
            on any device or as nested lists; may be empty.
        video_grid_thw: (num_videos, 3) likewise.
        second_per_grid_ts: seconds of a temporal step, one or more for each row of
            `video_grid_thw`, of the two families with a rate: a tensor (n,) or (n, 1), or an array
            or a sequence of numbers or of tensors of one number; None: 1.
        **kwargs: ignored, but for `qwen3_omni_moe`.

    Returns:
        `position_ids` (3, B, T) in the dtype of `input_ids`, and `rope_deltas` (B, 1) int64, the
        row's largest position plus one, less T. Without grids (3, 1, T) and (1, 1), both int64,
        whatever the number of rows. Neither aliases an input. The call synchronises with the device
        wherever there is a grid.

    Raises:
        TypeError: for an argument of the wrong type or dtype, a missing rate among them.
        ValueError: for shapes or values that do not fit, or an unknown `model_type`. Placeholders
            that no `vision_start_token_id` announces are text to SGLang, as are those behind the
            last one that a grid describes; here they are an error.

    Where SGLang raises although there is an answer, this returns it: for nested lists where frames
    are numbered one by one, for a row that ends in a `vision_start_token_id`, for grid rows of
    zeros, which are no item, and for T = 0. For B = 0 the deltas are int64 and not floating-point.

    Example:
        >>> import torch
        >>> from vecrope.integrations.sglang import get_rope_index
        >>> position_ids, rope_deltas = get_rope_index(
        ...     2, 8, 9, 7, "qwen2_5_vl", 4, input_ids=torch.tensor([[7, 9, 9, 5]]),
        ...     video_grid_thw=torch.tensor([[2, 2, 2]]), second_per_grid_ts=[0.5],
        ... )
        >>> position_ids[:, 0]
        tensor([[0, 1, 3, 4],
                [0, 1, 1, 4],
                [0, 1, 1, 4]])
        >>> rope_deltas
        tensor([[1]])
    """
    if model_type == "qwen3_omni_moe":
        return get_rope_index_qwen3_omni(
            spatial_merge_size,
            image_token_id,
            video_token_id,
            vision_start_token_id,
            tokens_per_second,
            input_ids,
            image_grid_thw,
            video_grid_thw,
            second_per_grid_ts,
            **kwargs,
        )
    if input_ids is None or (image_grid_thw is None and video_grid_thw is None):
        return text_rope_index(input_ids)
    if model_type not in MODEL_TYPES:
        known = ", ".join(map(repr, MODEL_TYPES))
        raise ValueError(
            f"model_type must be 'qwen3_omni_moe' or one of {known}, as in SGLang's function, "
            f"got {model_type!r}"
        )
    timed = model_type in _TIMED
    spec = _spec_of(
        model_type,
        spatial_merge_size,
        image_token_id,
        None if video_token_id is None or video_token_id < 0 else video_token_id,
        vision_start_token_id,
        tokens_per_second if timed else None,
    )
    return rope_index_of_used(
        input_ids,
        spec,
        image_grid_thw,
        video_grid_thw,
        _as_multiplied(as_seconds(second_per_grid_ts, video_grid_thw), tokens_per_second)
        if timed
        else None,
    )


def is_left(given: Mapping[str, Any]) -> bool:
    """Say whether SGLang's own function is faster, given arguments of `get_rope_index` by name.

    It is for a prompt of one video whose frames are spaced by seconds, and of nothing else, that is
    shorter than `_LEAST_TOKENS`.
    """
    images, videos = given.get("image_grid_thw"), given.get("video_grid_thw")
    input_ids = given.get("input_ids")
    return (
        given["model_type"] in _TIMED
        and (images is None or len(images) == 0)
        and videos is not None
        and len(videos) == 1
        and input_ids is not None
        and input_ids.numel() < _LEAST_TOKENS
    )


@remembered
def _spec_of(
    model_type: str,
    spatial_merge_size: int,
    image_token_id: int,
    video_token_id: int | None,
    vision_start_token_id: int,
    tokens_per_second: float | None,
) -> MRopeSpec:
    spec = MRopeSpec.for_model(
        _NUMBERED_AS.get(model_type, model_type),
        convention="sglang",
        spatial_merge_size=spatial_merge_size,
        image_token_id=image_token_id,
        video_token_id=video_token_id,
        vision_start_token_id=vision_start_token_id,
        tokens_per_second=tokens_per_second,
    )
    return replace(spec, model_type=model_type)


def _as_multiplied(seconds: Any, rate: float | None) -> Any:
    """Return seconds of the type whose products with the rate are rounded as SGLang's are."""
    if isinstance(seconds, Tensor) and not seconds.dtype.is_floating_point:
        return seconds.to(torch.float32 if isinstance(rate, float) else torch.float64)
    return seconds
