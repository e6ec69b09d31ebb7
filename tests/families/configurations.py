"""Configurations of every family."""

import pytest
from oracles import CORE, NOT_YET_IN_TRANSFORMERS, families_of
from transformers import Glm4vConfig

from vecrope import MRopeSpec

IDS = ("image_token_id", "video_start_token_id", "video_end_token_id")

# Of whom transformers has a configuration class; SGLang's and vLLM's configurations are the same.
CONFIGURED = [
    (model_type, convention)
    for model_type, convention in CORE
    if model_type in {*families_of("transformers")} - NOT_YET_IN_TRANSFORMERS.keys()
]

# Where a configuration keeps what its family's spec takes from it.
PLACES = {
    **{
        name: name
        for name in (
            "image_token_id",
            "video_token_id",
            "video_start_token_id",
            "video_end_token_id",
            "vision_start_token_id",
        )
    },
    "spatial_merge_size": "vision_config.spatial_merge_size",
    "temporal_merge_size": "vision_config.temporal_merge_size",
    "tokens_per_second": "vision_config.tokens_per_second",
}


def from_config(model_type, *, convention):
    config = {**Glm4vConfig().to_dict(), "model_type": model_type}
    return MRopeSpec.from_config(config, convention=convention)


BUILDERS = pytest.mark.parametrize(
    "build", [MRopeSpec.for_model, from_config], ids=["for_model", "from_config"]
)
