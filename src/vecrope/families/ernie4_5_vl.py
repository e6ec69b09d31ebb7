"""ERNIE 4.5 VL, whose original configuration has names of its own."""

from __future__ import annotations

from vecrope.families.conventions import BY_IDS, BY_MARKERS, SGLANG, TRANSFORMERS, VLLM
from vecrope.families.family import Family, Path

_ERNIE_ORIGINAL_PATHS: dict[str, Path] = {
    "image_token_id": ("im_patch_id", "image_token_id"),
    "video_start_token_id": "video_start_token_id",
    "video_end_token_id": "video_end_token_id",
    "spatial_merge_size": ("spatial_conv_size", "vision_config.spatial_merge_size"),
    "temporal_merge_size": ("temporal_conv_size", "vision_config.temporal_merge_size"),
}


FAMILIES: dict[str, Family] = {
    "ernie4_5_vl_moe": Family(
        {
            "transformers": {**TRANSFORMERS, **BY_IDS},
            "sglang": {**SGLANG, **BY_MARKERS},
            "vllm": {**VLLM, **BY_MARKERS, "multi_frame_images": True},
        },
        {
            "spatial_merge_size": "vision_config.spatial_merge_size",
            "temporal_merge_size": "vision_config.temporal_merge_size",
        },
        {"image_token_id": 100295, "spatial_merge_size": 2, "temporal_merge_size": 2},
        paths_by_convention={
            "transformers": {
                "image_token_id": "image_token_id",
                "video_token_id": "video_token_id",
            },
            "sglang": _ERNIE_ORIGINAL_PATHS,
            "vllm": _ERNIE_ORIGINAL_PATHS,
        },
        defaults_by_convention={
            "transformers": {"video_token_id": 103367},
            "sglang": {"video_start_token_id": 101306, "video_end_token_id": 101307},
            "vllm": {"video_start_token_id": 101306, "video_end_token_id": 101307},
        },
    ),
}
