"""What the registry knows: configurations, class defaults, and upstreams of every family."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from oracles import each_core, spec_of, transformers_classes
from transformers import Glm4vConfig

from tests.families.configurations import (
    BUILDERS,
    CONFIGURED,
    IDS,
    PLACES,
)
from vecrope import MRopeSpec
from vecrope.families import FAMILIES, NOT_MROPE

each_configured = pytest.mark.parametrize(("model_type", "convention"), CONFIGURED)

# What a class of transformers has no field for; SGLang needs it, vLLM has a default of its own.
NO_CLASS_FIELD = {
    ("paddleocr_vl", "sglang"): "tokens_per_second",
    ("paddleocr_vl", "vllm"): "tokens_per_second",
    ("qwen2_vl", "vllm"): "tokens_per_second",
}


def config_of(model_type, **changes):
    config_class, _ = transformers_classes(model_type)
    return config_class(**changes)


def look_up(node, path):
    for name in path.split("."):
        node = getattr(node, name)
    return node


def as_object(tree):
    return SimpleNamespace(
        **{
            str(name): as_object(value) if isinstance(value, dict) else value
            for name, value in tree.items()
        }
    )


FORMS = {
    "config": lambda config: config,
    "dict": lambda config: config.to_dict(),
    "config.json": lambda config: json.loads(config.to_json_string()),
    "json of a dict": lambda config: json.loads(json.dumps(config.to_dict())),
    "object": lambda config: as_object(config.to_dict()),
    "object of dicts": lambda config: SimpleNamespace(**config.to_dict()),
    "dict of objects": lambda config: {"model_type": config.model_type, **vars(config)},
}


def fields_in_config(model_type, convention):
    """Return the fields of a spec that its family reads off a configuration."""
    family = FAMILIES[model_type]
    return {*family.paths, *family.paths_by_convention.get(convention, {})} - {
        NO_CLASS_FIELD.get((model_type, convention))
    }


@each_configured
def test_from_config_reads_every_field(model_type, convention):
    values = {
        name: 11 + at for at, name in enumerate(sorted(fields_in_config(model_type, convention)))
    }
    config = config_of(model_type)
    for name, value in values.items():
        *path, last = PLACES[name].split(".")
        setattr(look_up(config, ".".join(path)) if path else config, last, value)
    if convention == "sglang" and model_type == "paddleocr_vl":
        config.vision_config.tokens_per_second = 25
        values["tokens_per_second"] = 25
    expected = replace(spec_of(model_type, convention), **values)
    for name, form in FORMS.items():
        assert MRopeSpec.from_config(form(config), convention=convention) == expected, name


@each_configured
def test_defaults_are_those_of_transformers(model_type, convention):
    config = config_of(model_type)
    assert config.model_type == model_type
    spec = spec_of(model_type, convention)
    for name in fields_in_config(model_type, convention):
        assert getattr(spec, name) == look_up(config, PLACES[name]), name
    if (model_type, convention) == ("paddleocr_vl", "sglang"):
        config.vision_config.tokens_per_second = spec.tokens_per_second
    assert spec == MRopeSpec.from_config(config, convention=convention)


@each_core
def test_whoever_looks_at_markers_looks_at_those_of_the_configuration(model_type, convention):
    spec = spec_of(model_type, convention)
    needed = {
        "none": set(),
        "last": {"video_start_token_id", "video_end_token_id"},
        "count": {"video_start_token_id", "video_end_token_id"},
        "adjacent": {"vision_start_token_id"},
    }[spec.marker_rule]
    given = {name for name in PLACES if name.endswith(("start_token_id", "end_token_id"))}
    assert {name for name in given if getattr(spec, name) is not None} == needed


def test_the_upstreams_of_every_family():
    assert {model_type: tuple(family.rules) for model_type, family in FAMILIES.items()}.items() >= {
        **dict.fromkeys(
            ("glm4v", "glm4v_moe", "glm_ocr", "qwen2_vl", "qwen2_5_vl", "paddleocr_vl", "qwen3_vl"),
            ("transformers", "sglang", "vllm"),
        ),
        **dict.fromkeys(
            ("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "cosmos3_omni", "cosmos3_edge"),
            ("transformers", "sglang", "vllm"),
        ),
        "ernie4_5_vl_moe": ("transformers", "sglang", "vllm"),
        "glm46v": ("transformers", "sglang"),
        "cohere_compass": ("transformers", "vllm"),
        **dict.fromkeys(("keye", "keye_vl1_5", "openpangu_vl", "minicpmv4_6"), ("vllm",)),
        "qwen3_asr": ("sglang", "vllm"),
    }.items()


ERNIE_ORIGINAL = {
    "model_type": "ernie4_5_vl_moe",
    "im_patch_id": 5,
    "video_start_token_id": 3,
    "video_end_token_id": 4,
    "spatial_conv_size": 3,
    "temporal_conv_size": 4,
}


@pytest.mark.parametrize("convention", ["sglang", "vllm"])
def test_ernies_original_configuration_is_read(convention):
    spec = MRopeSpec.from_config(ERNIE_ORIGINAL, convention=convention)
    assert spec == replace(
        spec_of("ernie4_5_vl_moe", convention),
        image_token_id=5,
        video_start_token_id=3,
        video_end_token_id=4,
        spatial_merge_size=3,
        temporal_merge_size=4,
    )


@pytest.mark.parametrize("model_type", ["keye", "keye_vl1_5", "openpangu_vl"])
def test_a_configuration_without_a_class(model_type):
    ids = {"image_token_id": 5, "video_token_id": 6}
    config = {"model_type": model_type, **ids, "vision_config": {"spatial_merge_size": 3}}
    spec = MRopeSpec.from_config(config, convention="vllm")
    assert spec == spec_of(model_type, "vllm", **ids, spatial_merge_size=3)


def test_sglang_needs_the_rate_that_paddleocrs_class_has_not():
    message = r"has no field 'vision_config.tokens_per_second' \(of PaddleOCRVLConfig\)$"
    with pytest.raises(ValueError, match=message):
        MRopeSpec.from_config(config_of("paddleocr_vl"), convention="sglang")


@pytest.mark.parametrize("model_type", ["qwen2_vl", "paddleocr_vl"])
def test_vllm_counts_a_position_a_second_unless_told_otherwise(model_type):
    config = config_of(model_type)
    assert MRopeSpec.from_config(config, convention="vllm").tokens_per_second == 1
    config.vision_config.tokens_per_second = 2
    assert MRopeSpec.from_config(config, convention="vllm").tokens_per_second == 2


@pytest.mark.parametrize(
    ("model_type", "convention", "name"),
    [
        ("paddleocr_vl", "sglang", "tokens_per_second"),
        ("keye", "vllm", "image_token_id"),
        ("keye_vl1_5", "vllm", "image_token_id"),
        ("openpangu_vl", "vllm", "image_token_id"),
    ],
)
def test_what_has_no_default_is_asked_for(model_type, convention, name):
    message = (
        rf"^'{model_type}' has no default {name} under convention '{convention}': pass "
        rf"{name}=\.\.\., or use from_config$"
    )
    with pytest.raises(ValueError, match=message):
        MRopeSpec.for_model(model_type, convention=convention)


@BUILDERS
@pytest.mark.parametrize(
    ("model_type", "convention", "known"),
    [
        ("glm46v", "vllm", "'transformers' or 'sglang'"),
        ("cohere_compass", "sglang", "'transformers' or 'vllm'"),
        ("keye", "transformers", "'vllm'"),
        ("openpangu_vl", "sglang", "'vllm'"),
    ],
)
def test_an_upstream_without_the_family_is_named(model_type, convention, known, build):
    message = (
        rf"^convention must be {known} for '{model_type}', got '{convention}': that upstream does "
        "not have the family$"
    )
    with pytest.raises(ValueError, match=message):
        build(model_type, convention=convention)


@BUILDERS
@pytest.mark.parametrize("model_type", NOT_MROPE)
def test_families_that_are_not_m_rope_are_named_as_such(model_type, build):
    message = rf"^'{model_type}' has no M-RoPE under convention 'transformers': its positions are "
    with pytest.raises(ValueError, match=message):
        build(model_type, convention="transformers")


def without(tree, path):
    head, _, rest = path.partition(".")
    if not rest:
        return {name: value for name, value in tree.items() if name != head}
    return {**tree, head: without(tree[head], rest)}


def with_none(tree, path):
    head, _, rest = path.partition(".")
    return {**tree, head: with_none(tree[head], rest) if rest else None}


@pytest.mark.parametrize("drop", [without, with_none], ids=["absent", "null"])
@pytest.mark.parametrize(
    ("form", "name"), [(dict, "dict"), (as_object, "SimpleNamespace")], ids=["dict", "object"]
)
@pytest.mark.parametrize(
    ("path", "named"),
    [
        *((name, name) for name in ("model_type", *IDS)),
        ("vision_config.spatial_merge_size", "vision_config.spatial_merge_size"),
        ("vision_config", "vision_config.spatial_merge_size"),
    ],
)
def test_a_missing_field_is_named(path, named, form, name, drop):
    source = form(drop({**Glm4vConfig().to_dict(), "model_type": "glm4v"}, path))
    message = rf"^the configuration has no field '{named}' \(of {name}\)$"
    with pytest.raises(ValueError, match=message):
        MRopeSpec.from_config(source, convention="sglang")


@BUILDERS
@pytest.mark.parametrize("model_type", ["qwen", "GLM4V", ""])
def test_an_unknown_model_type_is_named(build, model_type):
    message = rf"^model_type {model_type!r} is not a family that vecrope knows: "
    with pytest.raises(ValueError, match=message):
        build(model_type, convention="sglang")


@BUILDERS
@pytest.mark.parametrize("convention", ["SGLang", "hf", None])
def test_an_unknown_convention_is_named_next_to_the_known(build, convention):
    message = rf"^convention must be one of 'sglang', 'transformers', 'vllm', got {convention!r}$"
    with pytest.raises(ValueError, match=message):
        build("glm4v", convention=convention)


def test_a_family_that_is_not_supported_says_why():
    with pytest.raises(ValueError, match="'hy_v4_vl' is not supported: each row of an image ends"):
        MRopeSpec.from_config({"model_type": "hy_v4_vl"}, convention="transformers")
