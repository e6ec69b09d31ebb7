"""GLM-Image."""

from __future__ import annotations

from vecrope.families.conventions import BY_IDS, SGLANG, TRANSFORMERS
from vecrope.families.family import Family
from vecrope.families.rules import GlmImage

# Its grids are in tokens, and markers tell its images.
_GLM_IMAGE = {**BY_IDS, "spatial_merge_size": 1}


FAMILIES: dict[str, Family] = {
    "glm_image": Family(
        {
            "transformers": {**TRANSFORMERS, **_GLM_IMAGE, "padding_value": 1},
            "sglang": {
                **SGLANG,
                **_GLM_IMAGE,
                "span_rule": "hw",
                "multi_frame_images": False,
                "position_dtype": "int64",
            },
        },
        {"image_token_id": "image_token_id"},
        {"image_token_id": 167855},
        own_rule=GlmImage,
        own_paths={
            "image_start_token_id": "image_start_token_id",
            "image_end_token_id": "image_end_token_id",
        },
        own_defaults={"image_start_token_id": 16384, "image_end_token_id": 16385},
    ),
}
