"""Configurations of MiniCPM-V 4.7, and the fields of its rule."""

from dataclasses import replace

import pytest
from own_support import minicpm_spec
from support import assert_same

from tests.own_rules.minicpmv4_7.calls import IDS, each_upstream, rope_index
from vecrope import MRopeSpec
from vecrope.families.rules import MiniCPMV47
from vecrope.testing import Prompt

CONFIG = {"model_type": "minicpmv4_7", "image_token_id": 6, "video_token_id": 7, **IDS}


def test_a_live_configuration_is_understood():
    import transformers

    config = transformers.MiniCPMV4_7Config(**CONFIG, downsample_mode="4x")
    spec = MRopeSpec.from_config(config, convention="transformers")
    assert spec.own_rule == MiniCPMV47(**IDS, downsample_mode="4x")
    assert (spec.image_token_id, spec.video_token_id) == (6, 7)
    assert spec.own_rule.downsample_factor == 2


@pytest.mark.parametrize("name", [*IDS, "image_token_id", "video_token_id"])
@each_upstream
def test_a_configuration_without_an_id_is_refused(name, upstream):
    import transformers

    assert getattr(transformers.MiniCPMV4_7Config(), name) is None
    config = {**CONFIG, "uses_mrope_canvas": True, name: None}
    with pytest.raises(ValueError, match=f"no field '{name}'"):
        MRopeSpec.from_config(config, convention=upstream)


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"uses_mrope_canvas": True}, ("sglang", "vllm")),
        ({"mrope_mode": " Canvas"}, ("sglang", "vllm")),
        ({"mrope_mode": "canvas_v2"}, ("vllm",)),
        ({"mrope_mode": "3d"}, ()),
        ({}, ()),
    ],
    ids=str,
)
def test_sglang_and_vllm_need_a_canvas_in_the_configuration(fields, known):
    config = {**CONFIG, **fields}
    rule = MRopeSpec.from_config(config, convention="transformers").own_rule
    assert (rule.crop_rule, rule.newline_closes, rule.downsample_mode) == ("runs", True, "16x")
    for upstream in ("sglang", "vllm"):
        if upstream in known:
            rule = MRopeSpec.from_config(config, convention=upstream).own_rule
            assert rule == MiniCPMV47(**IDS, crop_rule="markers", newline_closes=upstream == "vllm")
        else:
            with pytest.raises(ValueError, match="must have uses_mrope_canvas true or mrope_mode"):
                MRopeSpec.from_config(config, convention=upstream)


@each_upstream
def test_there_are_no_default_ids(upstream):
    for_model = MRopeSpec.for_model
    with pytest.raises(ValueError, match="has no default image_token_id"):
        for_model("minicpmv4_7", convention=upstream)
    placeholders = {"image_token_id": 6, "video_token_id": 7}
    with pytest.raises(ValueError, match=r"has no default image_start_id: pass own_rule="):
        for_model("minicpmv4_7", convention=upstream, **placeholders)
    rule = MiniCPMV47(**IDS)
    spec = for_model("minicpmv4_7", convention=upstream, **placeholders, own_rule=rule)
    assert spec.own_rule is rule


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"newline_id": None}, TypeError, "newline_id must be an int, got None"),
        ({"newline_id": True}, TypeError, "newline_id must be an int, got True"),
        ({"slice_end_id": -1}, ValueError, "slice_end_id must be from 0 to .*, got -1"),
        ({"slice_end_id": 1}, ValueError, r"must differ, got \(1, 2, 3, 1, 5\)"),
        ({"newline_closes": 1}, TypeError, "newline_closes must be a bool, got 1"),
        (
            {"downsample_mode": "8x"},
            ValueError,
            "downsample_mode must be one of '16x', '4x', got '8x'",
        ),
        ({"crop_rule": "ids"}, ValueError, "crop_rule must be one of 'runs', 'markers', got 'ids'"),
    ],
    ids=str,
)
def test_an_unsound_rule_is_refused(fields, error, message):
    with pytest.raises(error, match=message):
        MiniCPMV47(**{**IDS, **fields})


def test_without_a_placeholder_id_types_are_needed():
    spec = replace(minicpm_spec("transformers"), image_token_id=None, video_token_id=None)
    prompt = Prompt.from_symbols(minicpm_spec("transformers"), ["t(I)t"], target_sizes=[[4, 4]])
    prompt = replace(prompt, spec=spec)
    assert_same(rope_index(prompt, by_types=True), prompt.expected(by_types=True))
    with pytest.raises(ValueError, match="left over"):
        rope_index(prompt)
    assert Prompt.from_symbols(spec, ["t()"]).symbols == ["t()"]
