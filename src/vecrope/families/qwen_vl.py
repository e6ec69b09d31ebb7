"""Qwen-VL, and the families whose frames stand between timestamps as those of Qwen3-VL do."""

from __future__ import annotations

from vecrope.families.conventions import (
    BY_IDS,
    BY_NEIGHBOUR,
    FRAMES_BY_IDS,
    FRAMES_BY_NEIGHBOUR,
    NEIGHBOUR_PATHS,
    RATE_PATHS,
    SECONDS_SGLANG,
    SECONDS_TRANSFORMERS,
    SECONDS_VLLM,
    SGLANG,
    TRANSFORMERS,
    VISION_PATHS,
    VLLM,
    vision_defaults,
)
from vecrope.families.family import Family


def _frames_between_timestamps(image: int, video: int, vision_start: int) -> Family:
    return Family(
        {
            "transformers": {**TRANSFORMERS, **FRAMES_BY_IDS},
            "sglang": {**SGLANG, **FRAMES_BY_NEIGHBOUR},
            "vllm": {**VLLM, **FRAMES_BY_IDS},
        },
        VISION_PATHS,
        vision_defaults(image, video),
        paths_by_convention={"sglang": NEIGHBOUR_PATHS},
        defaults_by_convention={"sglang": {"vision_start_token_id": vision_start}},
    )


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        {
            "transformers": {**TRANSFORMERS, **BY_IDS},
            "sglang": {**SGLANG, **BY_NEIGHBOUR},
            # vLLM numbers it as it does qwen2_5_vl, at one position a second where the
            # configuration names no rate.
            "vllm": {**VLLM, **BY_IDS, **SECONDS_VLLM},
        },
        VISION_PATHS,
        vision_defaults(151655, 151656),
        paths_by_convention={"sglang": NEIGHBOUR_PATHS, "vllm": RATE_PATHS},
        defaults_by_convention={
            "sglang": {"vision_start_token_id": 151652},
            "vllm": {"tokens_per_second": 1.0},
        },
    ),
    "qwen2_5_vl": Family(
        {
            "transformers": {**TRANSFORMERS, **BY_IDS, **SECONDS_TRANSFORMERS},
            "sglang": {**SGLANG, **BY_NEIGHBOUR, **SECONDS_SGLANG},
            "vllm": {**VLLM, **BY_IDS, **SECONDS_VLLM},
        },
        {**VISION_PATHS, **RATE_PATHS},
        {**vision_defaults(151655, 151656), "tokens_per_second": 4},
        paths_by_convention={"sglang": NEIGHBOUR_PATHS},
        defaults_by_convention={"sglang": {"vision_start_token_id": 151652}},
    ),
    "qwen3_vl": _frames_between_timestamps(151655, 151656, 151652),
    "qwen3_vl_moe": _frames_between_timestamps(151655, 151656, 151652),
    "qwen3_5": _frames_between_timestamps(248056, 248057, 248053),
    "qwen3_5_moe": _frames_between_timestamps(248056, 248057, 248053),
    "qwen4_exp": _frames_between_timestamps(248056, 248057, 248053),
    "cosmos3_omni": _frames_between_timestamps(151655, 151656, 151652),
    "cosmos3_edge": _frames_between_timestamps(19, 18, 20),
}
