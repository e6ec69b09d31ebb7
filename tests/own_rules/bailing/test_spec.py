import pytest

from tests.own_rules.bailing.calls import BLOCKS
from vecrope import MRopeSpec
from vecrope.families.rules import Bailing

# Configurations

TEXT_CONFIG = {
    "image_patch_token": 11,
    "video_patch_token": 12,
    "image_start_token": 13,
    "video_start_token": 14,
    "max_position_embeddings": 100,
}


@pytest.mark.parametrize("place", ["text_config", "llm_config"])
@pytest.mark.parametrize(
    ("fields", "separate_frames", "rule"),
    [
        pytest.param({}, False, Bailing(-100, 100), id="defaults"),
        pytest.param(
            {"use_interleaved_frame_timestamp": True}, True, Bailing(-100, 100), id="timestamps"
        ),
        pytest.param(
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
            False,
            Bailing(-100, 400),
            id="yarn",
        ),
        pytest.param(
            {
                "rope_parameters": {
                    "type": "deepseek_yarn",
                    "factor": 2.5,
                    "original_max_position_embeddings": 50,
                }
            },
            False,
            Bailing(-100, 125),
            id="yarn by its older name, of another context",
        ),
        pytest.param(
            {"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 50}},
            False,
            Bailing(-100, 100),
            id="yarn of a shorter context",
        ),
        pytest.param(
            {"rope_parameters": {"rope_type": "default", "factor": 4.0}},
            False,
            Bailing(-100, 100),
            id="no yarn",
        ),
    ],
)
def test_a_configuration_is_understood(fields, separate_frames, rule, place):
    config = {
        "model_type": "bailing_moe_v3_vl",
        "vision_config": {"spatial_merge_size": 3},
        place: {**TEXT_CONFIG, **fields},
    }
    spec = MRopeSpec.from_config(config, convention="sglang")
    ids = spec.image_token_id, spec.video_token_id, spec.vision_start_token_id
    assert (*ids, spec.video_start_token_id) == (11, 12, 13, 14)
    assert (spec.separate_frames, spec.spatial_merge_size, spec.own_rule) == (
        separate_frames,
        3,
        rule,
    )


@pytest.mark.parametrize("name", TEXT_CONFIG)
def test_a_missing_field_is_named(name):
    text = {key: value for key, value in TEXT_CONFIG.items() if key != name}
    vision = {"spatial_merge_size": 2}
    config = {"model_type": "bailing_moe_v3_vl", "text_config": text, "vision_config": vision}
    with pytest.raises(ValueError, match=f"no field 'text_config.{name}' or 'llm_config.{name}'"):
        MRopeSpec.from_config(config, convention="sglang")


def test_vllm_reads_the_placeholder_elsewhere():
    config = {
        "model_type": "bailing_moe_v3_vl",
        "image_token_id": 5,
        "vision_config": {"spatial_merge_size": 2},
    }
    spec = MRopeSpec.from_config(config, convention="vllm")
    assert (spec.image_token_id, spec.own_rule, spec.multi_frame_images) == (5, None, False)


def test_without_a_configuration_no_position_is_out_of_bounds():
    assert BLOCKS.own_rule == Bailing() == Bailing.of_context()
