"""The configurations of the omni families, and the fields of their rule."""

from dataclasses import replace

import pytest
import transformers

from tests.own_rules.omni.prompts import QWEN2_5, QWEN3
from vecrope import MRopeSpec
from vecrope.families.rules import OmniRule

# Configurations


def complete(config):
    """Give the thinker what its class has no default for, and every checkpoint has."""
    config.thinker_config.vision_start_token_id = 151652
    return config


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_type", "config_class", "convention"),
    [
        (QWEN2_5, "Qwen2_5OmniConfig", "transformers"),
        (QWEN2_5, "Qwen2_5OmniConfig", "vllm"),
        (QWEN3, "Qwen3OmniMoeConfig", "transformers"),
        (QWEN3, "Qwen3OmniMoeConfig", "sglang"),
        (QWEN3, "Qwen3OmniMoeConfig", "vllm"),
    ],
)
def test_configurations_are_understood(model_type, config_class, convention):
    config = getattr(transformers, config_class)()
    want = MRopeSpec.for_model(model_type, convention=convention)
    # Only the talker's class knows where vision starts.
    assert MRopeSpec.from_config(config, convention=convention) == want
    with pytest.raises(ValueError, match=r"no field 'thinker_config\.vision_start_token_id'"):
        MRopeSpec.from_config(config.thinker_config, convention=convention)
    thinker = complete(config).thinker_config
    alone = replace(want, model_type=f"{model_type}_thinker")
    for given_config, spec in (
        (config, want),
        (config.to_dict(), want),
        (thinker, alone),
        (thinker.to_dict(), alone),
    ):
        assert MRopeSpec.from_config(given_config, convention=convention) == spec


def test_a_configuration_is_read_where_each_upstream_reads_it():
    config = {
        "model_type": QWEN2_5,
        "thinker_config": {
            "image_token_index": 1,
            "video_token_index": 2,
            "audio_token_index": 3,
            "vision_start_token_id": 4,
            "audio_start_token_id": 5,
            "position_id_per_seconds": 50,
            "seconds_per_chunk": 3,
            "vision_config": {"spatial_merge_size": 4, "tokens_per_second": 12},
        },
    }
    for convention, rate in (("transformers", 50), ("vllm", 12)):
        spec = MRopeSpec.from_config(config, convention=convention)
        assert spec.tokens_per_second == rate
        assert (spec.image_token_id, spec.video_token_id, spec.vision_start_token_id) == (1, 2, 4)
        assert spec.spatial_merge_size == 4
        rule = spec.own_rule
        assert (rule.audio_token_id, rule.audio_start_token_id) == (3, 5)
        assert rule.seconds_per_chunk == 3
    del config["thinker_config"]["vision_config"]["tokens_per_second"]
    assert MRopeSpec.from_config(config, convention="vllm").tokens_per_second == 25


def test_only_transformers_reads_the_window_of_the_audio_encoder():
    config = {
        "model_type": "qwen3_omni_moe_thinker",
        "image_token_id": 1,
        "video_token_id": 2,
        "audio_token_id": 3,
        "vision_start_token_id": 4,
        "audio_start_token_id": 5,
        "position_id_per_seconds": 13,
        "audio_config": {"n_window": 100},
        "vision_config": {"spatial_merge_size": 2},
    }
    windows = {
        convention: MRopeSpec.from_config(config, convention=convention).own_rule.n_window
        for convention in ("transformers", "sglang", "vllm")
    }
    assert windows == {"transformers": 100, "sglang": 50, "vllm": 50}


def test_sglang_has_no_qwen2_5_omni():
    with pytest.raises(ValueError, match="'transformers' or 'vllm' for 'qwen2_5_omni'"):
        MRopeSpec.for_model(QWEN2_5, convention="sglang")


RULE = {
    "audio_token_id": 1,
    "audio_start_token_id": 2,
    "whole_times": True,
    "interleave": "walk",
    "seconds_per_chunk": 2,
    "sound_markers": "own",
    "sound_end": "piece",
    "text_dtype": "int64",
}


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"audio_token_id": "1"}, TypeError, "audio_token_id must be an int, got '1'"),
        ({"audio_token_id": True}, TypeError, "audio_token_id must be an int, got True"),
        ({"audio_start_token_id": -1}, ValueError, "audio_start_token_id must be from 0"),
        ({"n_window": 0}, ValueError, "n_window must be from 1"),
        ({"seconds_per_chunk": None}, TypeError, "seconds_per_chunk must be a number, got None"),
        ({"seconds_per_chunk": 0}, ValueError, "seconds_per_chunk must be positive, got 0"),
        ({"interleave": "zip"}, ValueError, "interleave must be one of 'merge', 'walk', 'count'"),
        ({"sound_markers": 1}, ValueError, "sound_markers must be one of"),
        ({"sound_end": "end"}, ValueError, "sound_end must be one of 'piece', 'block'"),
        ({"text_dtype": "ids"}, ValueError, "text_dtype must be one of 'int64', 'float32'"),
        ({"text_padding_value": 0.5}, TypeError, "text_padding_value must be an int, got 0.5"),
        ({"whole_times": 1}, TypeError, "whole_times must be a bool, got 1"),
    ],
)
def test_a_rule_checks_its_fields(changes, error, match):
    assert OmniRule(**RULE) == OmniRule(**RULE)
    with pytest.raises(error, match=match):
        OmniRule(**{**RULE, **changes})


@pytest.mark.parametrize("name", ["video_token_id", "vision_start_token_id"])
def test_no_two_ids_are_equal(name):
    spec = MRopeSpec.for_model("qwen3_omni_moe", convention="vllm")
    with pytest.raises(ValueError, match=f"{name}.* and audio_start_token_id must differ, got"):
        replace(spec, **{name: spec.own_rule.audio_token_id})
