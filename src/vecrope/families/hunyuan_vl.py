"""HunyuanVL."""

from __future__ import annotations

from vecrope.families.conventions import BY_IDS, TRANSFORMERS
from vecrope.families.family import Family
from vecrope.families.rules import Hunyuan

# By its name and its older one, in a nested configuration and in one that is not.
_HUNYUAN_SECTION_PATHS = tuple(
    f"{place}.{name}"
    for name in ("mrope_section", "xdrope_section")
    for place in (
        "text_config.rope_parameters",
        "text_config.rope_scaling",
        "rope_parameters",
        "rope_scaling",
    )
)


FAMILIES: dict[str, Family] = {
    "hunyuan_vl": Family(
        {"transformers": {**TRANSFORMERS, **BY_IDS}},
        {
            "image_token_id": "image_token_id",
            "spatial_merge_size": "vision_config.spatial_merge_size",
        },
        {"image_token_id": 120120, "spatial_merge_size": 2},
        own_rule=Hunyuan.of_section,
        own_paths={"mrope_section": _HUNYUAN_SECTION_PATHS},
    ),
}
