"""Ling (Bailing) V3 VL."""

from __future__ import annotations

from vecrope.families.conventions import BY_IDS, SGLANG, VLLM
from vecrope.families.family import Family
from vecrope.families.rules import Bailing


def _in_text_config(name: str) -> tuple[str, ...]:
    return f"text_config.{name}", f"llm_config.{name}"


FAMILIES: dict[str, Family] = {
    "bailing_moe_v3_vl": Family(
        {
            "sglang": {**SGLANG, "marker_rule": "none"},
            "vllm": {**VLLM, **BY_IDS},
        },
        {"spatial_merge_size": "vision_config.spatial_merge_size"},
        {"spatial_merge_size": 2},
        paths_by_convention={
            "sglang": {
                "image_token_id": _in_text_config("image_patch_token"),
                "video_token_id": _in_text_config("video_patch_token"),
                "vision_start_token_id": _in_text_config("image_start_token"),
                "video_start_token_id": _in_text_config("video_start_token"),
                "separate_frames": _in_text_config("use_interleaved_frame_timestamp"),
            },
            "vllm": {"image_token_id": "image_token_id"},
        },
        defaults_by_convention={
            "sglang": {"separate_frames": False},
            "vllm": {"image_token_id": 151655},
        },
        own_rule=Bailing.of_context,
        shared_in=("vllm",),
        own_paths={
            "max_position_embeddings": _in_text_config("max_position_embeddings"),
            "rope_type": (
                *_in_text_config("rope_parameters.rope_type"),
                *_in_text_config("rope_parameters.type"),
            ),
            "factor": _in_text_config("rope_parameters.factor"),
            "original_max_position_embeddings": _in_text_config(
                "rope_parameters.original_max_position_embeddings"
            ),
        },
        own_defaults={
            "max_position_embeddings": None,
            "rope_type": "default",
            "factor": 1.0,
            "original_max_position_embeddings": 0,
        },
    ),
}
