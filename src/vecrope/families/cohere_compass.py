"""Cohere's Compass; vLLM's takes no videos."""

from __future__ import annotations

from vecrope.families.conventions import BY_IDS, FRAMES_BY_IDS, TRANSFORMERS, VLLM
from vecrope.families.family import Family

FAMILIES: dict[str, Family] = {
    "cohere_compass": Family(
        {
            "transformers": {**TRANSFORMERS, **FRAMES_BY_IDS},
            "vllm": {**VLLM, **BY_IDS},
        },
        {
            "image_token_id": "image_token_id",
            "spatial_merge_size": "vision_config.spatial_merge_size",
        },
        {"image_token_id": 255031, "spatial_merge_size": 2},
        paths_by_convention={"transformers": {"video_token_id": "video_token_id"}},
        defaults_by_convention={"transformers": {"video_token_id": 255032}},
    ),
}
