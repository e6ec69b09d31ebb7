"""What most families of an upstream have in common: rules, and fields of a configuration."""

from __future__ import annotations

from vecrope.families.family import Path

# What each upstream does for nearly every family: at masked tokens, with a block of more temporal
# than spatial extent, and in the length that deltas are measured against. vLLM has no padding; a
# row's unmasked tokens are one of its requests.
TRANSFORMERS = {"span_rule": "hw", "padding_value": 0, "delta_length": "valid"}
SGLANG = {
    "span_rule": "thw",
    "mask_rule": "ignore",
    "padding_value": 0,
    "delta_length": "padded",
}
VLLM = {
    "span_rule": "thw",
    "padding_value": 0,
    "delta_length": "valid",
    "position_dtype": "int64",
    "multi_frame_images": False,
}

# How placeholders are recognised, and whether a video is a block or frames.
BY_IDS = {"marker_rule": "none", "separate_frames": False}
BY_NEIGHBOUR = {"marker_rule": "adjacent", "separate_frames": False}
BY_MARKERS = {"marker_rule": "last", "separate_frames": False}
FRAMES_BY_IDS = {"marker_rule": "none", "separate_frames": True}
FRAMES_BY_NEIGHBOUR = {"marker_rule": "adjacent", "separate_frames": True}
FRAMES_BY_MARKERS = {"marker_rule": "last", "separate_frames": True}
FRAMES_BY_MARKER_COUNT = {"marker_rule": "count", "separate_frames": True}

# In which order, and how precisely, a video's seconds become positions.
SECONDS_TRANSFORMERS = {"video_time": "seconds", "time_order": "rate", "default_seconds": 1.0}
SECONDS_SGLANG = {
    "image_time": "none",
    "video_time": "seconds",
    "time_order": "seconds",
    "default_seconds": 1.0,
}
SECONDS_VLLM = {**SECONDS_TRANSFORMERS, "time_dtype": "float64"}

VISION_PATHS: dict[str, Path] = {
    "image_token_id": "image_token_id",
    "video_token_id": "video_token_id",
    "spatial_merge_size": "vision_config.spatial_merge_size",
}
NEIGHBOUR_PATHS: dict[str, Path] = {"vision_start_token_id": "vision_start_token_id"}
RATE_PATHS: dict[str, Path] = {"tokens_per_second": "vision_config.tokens_per_second"}


def vision_defaults(image: int, video: int) -> dict[str, int]:
    """Return the default ids of a family with an id for images and one for videos."""
    return {"image_token_id": image, "video_token_id": video, "spatial_merge_size": 2}
