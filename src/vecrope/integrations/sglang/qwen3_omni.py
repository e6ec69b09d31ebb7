"""SGLang's function for Qwen3-Omni."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from vecrope.families.rules import OmniRule
from vecrope.integrations.sglang.arguments import (
    Grids,
    remembered,
    rope_index_of_used,
    text_rope_index,
)
from vecrope.spec import MRopeSpec

_OMNI = MRopeSpec.for_model("qwen3_omni_moe", convention="sglang")


def get_rope_index_qwen3_omni(
    spatial_merge_size: int,
    image_token_id: int,
    video_token_id: int,
    vision_start_token_id: int,
    tokens_per_second: int | None = None,  # noqa: ARG001 - SGLang takes and ignores it
    input_ids: Tensor | None = None,
    image_grid_thw: Grids = None,
    video_grid_thw: Grids = None,
    second_per_grid_ts: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Return the M-RoPE position ids and deltas that SGLang's function of this name returns.

    As there, grids, seconds and audios that no token asks for are ignored; there is no mask, and
    padding is numbered as text; and without any grid (both arguments None) all tokens are text,
    audio among them.

    Args:
        spatial_merge_size: patches per token along each spatial side.
        image_token_id: the placeholder of images.
        video_token_id: the placeholder of videos.
        vision_start_token_id: the token right before every image and video.
        tokens_per_second: ignored.
        input_ids: (B, T) int64 or int32.
        image_grid_thw: (num_images, 3) integers in patches, in the order of the prompt, as a tensor
            on any device or as nested lists; may be empty.
        video_grid_thw: (num_videos, 3) likewise.
        second_per_grid_ts: (num_videos,) or more, seconds of a temporal step of each video.
        **kwargs: `audio_token_id`, `audio_start_token_id` and `position_id_per_seconds` must be
            among them; `audio_seqlens` (num_audios,), mel frames of each audio, and
            `use_audio_in_video`, False, may; others are ignored.

    Returns:
        `position_ids` (3, B, T) and `rope_deltas` (B, 1), both float32: the row's largest position
        plus one, less T. Without grids (3, 1, T) and (1, 1), both int64, whatever the number of
        rows. Neither aliases an input. The call synchronises with the device wherever there is a
        grid.

    Raises:
        KeyError: for a keyword that is missing.
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes or values that do not fit. Where only the sums of tokens and media
            fit, SGLang answers with positions that belong to other tokens; here that is an error.

    Where SGLang raises although there is an answer, this returns it: for nested lists, for grid
    rows of zeros, which are no item, and for T = 0.

    Example:
        >>> import torch
        >>> from vecrope.integrations.sglang import get_rope_index_qwen3_omni
        >>> position_ids, rope_deltas = get_rope_index_qwen3_omni(
        ...     2, 8, 9, 7, input_ids=torch.tensor([[7, 9, 9, 5]]),
        ...     video_grid_thw=torch.tensor([[2, 2, 2]]), second_per_grid_ts=torch.tensor([0.75]),
        ...     audio_token_id=10, audio_start_token_id=11, position_id_per_seconds=2,
        ... )
        >>> position_ids[:, 0]
        tensor([[0.0000, 1.0000, 2.5000, 3.5000],
                [0.0000, 1.0000, 1.0000, 3.5000],
                [0.0000, 1.0000, 1.0000, 3.5000]])
        >>> rope_deltas
        tensor([[0.5000]])
    """
    audio = kwargs["audio_token_id"], kwargs["audio_start_token_id"]
    vision = spatial_merge_size, image_token_id, video_token_id, vision_start_token_id
    rate = kwargs["position_id_per_seconds"]
    if input_ids is None or (image_grid_thw is None and video_grid_thw is None):
        return text_rope_index(input_ids)
    return rope_index_of_used(
        input_ids,
        _spec_of(*vision, *audio, rate),
        image_grid_thw,
        video_grid_thw,
        second_per_grid_ts,
        audio_seqlens=kwargs.get("audio_seqlens"),
        use_audio_in_video=bool(kwargs.get("use_audio_in_video", False)),
    )


@remembered
def _spec_of(
    merge_size: int, image: int, video: int, vision_start: int, audio: int, start: int, rate: float
) -> MRopeSpec:
    assert isinstance(_OMNI.own_rule, OmniRule)
    return replace(
        _OMNI,
        spatial_merge_size=merge_size,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=vision_start,
        tokens_per_second=rate,
        own_rule=replace(_OMNI.own_rule, audio_token_id=audio, audio_start_token_id=start),
    )
