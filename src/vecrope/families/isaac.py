"""Isaac."""

from __future__ import annotations

from vecrope.families.conventions import BY_IDS, VLLM
from vecrope.families.family import Family
from vecrope.families.rules import Isaac

FAMILIES: dict[str, Family] = {
    "isaac": Family(
        {"vllm": {**VLLM, **BY_IDS}},
        {
            "image_token_id": "image_token_id",
            "spatial_merge_size": "vision_config.pixel_shuffle_scale_factor",
        },
        own_rule=Isaac,
    ),
}
