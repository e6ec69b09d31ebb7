"""GLM's vision-language models: video frames between markers, with one id for all placeholders."""

from __future__ import annotations

from vecrope.families.conventions import (
    FRAMES_BY_MARKER_COUNT,
    FRAMES_BY_MARKERS,
    SGLANG,
    TRANSFORMERS,
    VLLM,
)
from vecrope.families.family import Family, Fields, Path

_MARKER_PATHS: dict[str, Path] = {
    "image_token_id": "image_token_id",
    "video_start_token_id": "video_start_token_id",
    "video_end_token_id": "video_end_token_id",
    "spatial_merge_size": "vision_config.spatial_merge_size",
}


def _glm(image: int, video_start: int, video_end: int, *, vllm: bool = True) -> Family:
    rules: dict[str, Fields] = {
        "transformers": {**TRANSFORMERS, **FRAMES_BY_MARKER_COUNT},
        "sglang": {**SGLANG, **FRAMES_BY_MARKERS, "mask_rule": "skip", "padding_value": 1},
    }
    if vllm:
        rules["vllm"] = {**VLLM, **FRAMES_BY_MARKERS, "frames_may_touch": False}
    return Family(
        rules,
        _MARKER_PATHS,
        {
            "image_token_id": image,
            "video_start_token_id": video_start,
            "video_end_token_id": video_end,
            "spatial_merge_size": 2,
        },
    )


FAMILIES: dict[str, Family] = {
    "glm4v": _glm(151343, 151341, 151342),
    "glm4v_moe": _glm(151363, 151341, 151342),
    "glm46v": _glm(151343, 151361, 151362, vllm=False),
    "glm_ocr": _glm(59280, 59258, 59259),
}
