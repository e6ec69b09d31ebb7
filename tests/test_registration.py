"""Families that users register, and what is said about names that are not known."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given

import vecrope
from vecrope import MRopeSpec
from vecrope.families import registry
from vecrope.testing import conversations

RULES = {
    "marker_rule": "none",
    "separate_frames": True,
    "span_rule": "hw",
    "padding_value": 0,
    "delta_length": "valid",
}
PATHS = {
    "image_token_id": "image_token_id",
    "video_token_id": ("clip_token_id", "video_token_id"),
    "spatial_merge_size": "vision_config.spatial_merge_size",
}
DEFAULTS = {"image_token_id": 9, "video_token_id": 10, "spatial_merge_size": 2}
INVENTED = {"rules": {"transformers": RULES}, "paths": PATHS, "defaults": DEFAULTS}


@pytest.fixture(autouse=True)
def registry_of_a_test(monkeypatch):
    families = dict(registry.FAMILIES)
    monkeypatch.setattr(registry, "FAMILIES", families)
    monkeypatch.setattr("vecrope.registration.FAMILIES", families)


def test_a_registered_family_is_known_by_its_name():
    vecrope.register_family("invented_vl", **INVENTED)
    spec = MRopeSpec.for_model("invented_vl", convention="transformers")
    assert (spec.image_token_id, spec.video_token_id, spec.spatial_merge_size) == (9, 10, 2)
    config = {
        "model_type": "invented_vl",
        "image_token_id": 5,
        "clip_token_id": 6,
        "vision_config": {"spatial_merge_size": 3},
    }
    read = MRopeSpec.from_config(config, convention="transformers")
    assert (read.image_token_id, read.video_token_id, read.spatial_merge_size) == (5, 6, 3)
    assert "invented_vl" in vecrope.list_families()
    assert "invented_vl" in vecrope.list_families("transformers")
    assert "invented_vl" not in vecrope.list_families("vllm")


def test_a_registered_family_is_numbered_as_the_reference_says():
    vecrope.register_family("invented_vl", **INVENTED)
    spec = MRopeSpec.for_model("invented_vl", convention="transformers")

    @given(conversations(spec))
    def check(prompt):
        expected, deltas = prompt.expected()
        position_ids, rope_deltas = vecrope.get_rope_index(
            prompt.input_ids,
            spec,
            image_grid_thw=prompt.image_grid_thw,
            video_grid_thw=prompt.video_grid_thw,
            attention_mask=prompt.attention_mask,
        )
        assert torch.equal(position_ids, expected)
        assert torch.equal(rope_deltas, deltas)

    check()


def test_the_same_family_may_be_registered_again_and_no_other():
    vecrope.register_family("invented_vl", **INVENTED)
    vecrope.register_family("invented_vl", **INVENTED)
    with pytest.raises(ValueError, match="'invented_vl' is a family that vecrope knows already"):
        vecrope.register_family("invented_vl", **INVENTED | {"defaults": {}})
    with pytest.raises(ValueError, match="'glm4v' is a family that vecrope knows already"):
        vecrope.register_family("glm4v", **INVENTED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"rules": {"transformer": RULES}},
            "rules of 'invented_vl' must be keyed by 'sglang', 'transformers', 'vllm', "
            "got 'transformer'",
            id="convention",
        ),
        pytest.param({"rules": {}}, "must hold a convention, got none", id="no rules"),
        pytest.param(
            {"rules": {"transformers": RULES | {"separate_frame": True}}},
            r"rules\['transformers'\] of 'invented_vl': 'separate_frame' is not a field of "
            "MRopeSpec; did you mean 'separate_frames'",
            id="typo in a rule",
        ),
        pytest.param(
            {"rules": {"transformers": RULES | {"marker_rule": "neighbour"}}},
            "marker_rule must be one of .*, got 'neighbour'",
            id="value of a rule",
        ),
        pytest.param(
            {"rules": {"transformers": {**RULES, "marker_rule": "adjacent"}}},
            "mask_rule must be 'ignore' with marker_rule 'adjacent'",
            id="contradiction",
        ),
        pytest.param(
            {"rules": {"transformers": {"marker_rule": "none"}}},
            "separate_frames is missing",
            id="missing rule",
        ),
        pytest.param(
            {"paths": PATHS | {"image_token": "image_token_id"}},
            "paths of 'invented_vl': 'image_token' is not a field of MRopeSpec; "
            "did you mean 'image_token_id'",
            id="typo in a path",
        ),
        pytest.param(
            {"defaults": {"image_tokenid": 9}},
            "defaults of 'invented_vl': 'image_tokenid' is not in paths; "
            "did you mean 'image_token_id'",
            id="typo in a default",
        ),
    ],
)
def test_a_typo_is_refused_at_registration(changes, message):
    with pytest.raises(ValueError, match=message):
        vecrope.register_family("invented_vl", **INVENTED | changes)
    assert "invented_vl" not in registry.FAMILIES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": ["transformers"]}, "^rules must be a dict, got list$"),
        ({"rules": {"vllm": None}}, r"^rules\['vllm'\] must be a dict, got NoneType$"),
        (
            {"paths": PATHS | {"image_token_id": 9}},
            r"^paths\['image_token_id'\] must be a dotted path or a tuple, got 9$",
        ),
        (
            {"rules": {"vllm": RULES | {"separate_frames": "yes"}}},
            "^separate_frames must be a bool, got 'yes'$",
        ),
    ],
)
def test_a_wrong_type_is_refused_at_registration(changes, message):
    with pytest.raises(TypeError, match=message):
        vecrope.register_family("invented_vl", **INVENTED | changes)


@pytest.mark.parametrize("name", [None, "", 3])
def test_a_family_needs_a_name(name):
    with pytest.raises(TypeError, match="model_type must be a name"):
        vecrope.register_family(name, **INVENTED)


def test_families_are_listed_by_convention():
    assert vecrope.list_families() == sorted(registry.FAMILIES)
    assert "hunyuan_vl" in vecrope.list_families("transformers")
    assert "hunyuan_vl" not in vecrope.list_families("vllm")
    with pytest.raises(ValueError, match=r"convention must be one of .*, got 'hf'"):
        vecrope.list_families("hf")


@pytest.mark.parametrize(
    ("model_type", "near"),
    [
        ("qwen25_vl", "'qwen2_5_vl'"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "'qwen2_5_vl'"),
        ("glm4.1v", "'glm4v'"),
        ("ernie4_5_moe_vl", "'ernie4_5_vl_moe'"),
    ],
)
def test_a_typo_or_a_checkpoints_name_is_answered_with_the_nearest_families(model_type, near):
    message = (
        f"^model_type '{model_type}' is not a family that vecrope knows: did you mean .*{near}"
    )
    with pytest.raises(ValueError, match=message) as caught:
        MRopeSpec.for_model(model_type, convention="transformers")
    assert str(caught.value).endswith("vecrope.list_families() lists what is known")
    assert len(str(caught.value)) < 200


def test_a_model_without_mrope_is_answered_with_the_list():
    message = "^model_type 'gpt2' is not a family that vecrope knows: vecrope.list_fam"
    with pytest.raises(ValueError, match=message):
        MRopeSpec.from_config({"model_type": "gpt2"}, convention="transformers")


def test_a_text_configuration_is_told_from_the_whole_models():
    message = "'qwen2_5_vl_text' is a part of 'qwen2_5_vl': pass the configuration of the whole"
    with pytest.raises(ValueError, match=message):
        MRopeSpec.from_config({"model_type": "qwen2_5_vl_text"}, convention="transformers")


def test_a_name_is_no_configuration():
    with pytest.raises(TypeError, match=r"got the name 'glm4v': MRopeSpec.for_model takes"):
        MRopeSpec.from_config("glm4v", convention="transformers")
    with pytest.raises(TypeError, match=r"got the name 'Qwen/Qwen2-VL': load it first"):
        MRopeSpec.from_config("Qwen/Qwen2-VL", convention="transformers")


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (SimpleNamespace(model_type="glm4v"), "; MRopeSpec.from_config takes a configuration"),
        ({"model_type": "glm4v"}, "; MRopeSpec.from_config takes a configuration"),
        (["glm4v"], ""),
        (5, ""),
    ],
)
def test_what_is_no_name_is_refused(given, remedy):
    with pytest.raises(TypeError, match=rf"^model_type must be a name, got \w+{remedy}$"):
        MRopeSpec.for_model(given, convention="transformers")


@pytest.mark.parametrize("config", [{"model_type": "glm4v"}, SimpleNamespace(model_type="glm4v")])
def test_a_configuration_is_no_spec(config):
    with pytest.raises(TypeError, match=r"spec must be an MRopeSpec, got .*MRopeSpec.from_config"):
        vecrope.get_rope_index(torch.tensor([[1]]), config)
