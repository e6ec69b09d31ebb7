"""PaddleOCR-VL."""

from __future__ import annotations

from vecrope.families.conventions import (
    BY_IDS,
    BY_NEIGHBOUR,
    NEIGHBOUR_PATHS,
    RATE_PATHS,
    SECONDS_SGLANG,
    SECONDS_VLLM,
    SGLANG,
    TRANSFORMERS,
    VISION_PATHS,
    VLLM,
    vision_defaults,
)
from vecrope.families.family import Family

FAMILIES: dict[str, Family] = {
    "paddleocr_vl": Family(
        {
            "transformers": {**TRANSFORMERS, **BY_IDS},
            "sglang": {**SGLANG, **BY_NEIGHBOUR, **SECONDS_SGLANG},
            "vllm": {**VLLM, **BY_IDS, **SECONDS_VLLM},
        },
        VISION_PATHS,
        vision_defaults(100295, 100296),
        paths_by_convention={
            "sglang": {**NEIGHBOUR_PATHS, **RATE_PATHS},
            "vllm": RATE_PATHS,
        },
        defaults_by_convention={
            "sglang": {"vision_start_token_id": 101305},
            "vllm": {"tokens_per_second": 1.0},
        },
    ),
}
