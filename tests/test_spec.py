"""What a spec refuses and accepts, and how it is shown."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest
from omni_support import OMNI
from omni_support import spec_of as omni_spec_of
from oracles import CORE, each_core, spec_of
from own_support import SPECS as OWN_SPECS
from transformers import Glm4vConfig

import vecrope
from tests.families.configurations import BUILDERS, IDS
from vecrope import MRopeSpec

SPEC = MRopeSpec.for_model("glm4v", convention="sglang")
ADJACENT = MRopeSpec.for_model("qwen3_vl", convention="sglang")
TIMED = MRopeSpec.for_model("qwen2_5_vl", convention="transformers")
BLOCKS = MRopeSpec.for_model("ernie4_5_vl_moe", convention="transformers")


@BUILDERS
def test_the_convention_has_no_default(build):
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'convention'"):
        build("glm4v")


def test_a_field_of_the_wrong_type_in_a_configuration_is_named():
    config = {**Glm4vConfig().to_dict(), "model_type": "glm4v", "image_token_id": "151343"}
    with pytest.raises(TypeError, match=r"^image_token_id must be an int, got '151343'$"):
        MRopeSpec.from_config(config, convention="sglang")


MUST_DIFFER = "^image_token_id, video_start_token_id and video_end_token_id must differ, got "


def refused(spec, changes, error, message, name=None):
    return pytest.param(
        spec, changes, error, message, id=name or " ".join(map(str, changes.items()))
    )


@pytest.mark.parametrize(
    ("spec", "changes", "error", "message"),
    [
        *(
            refused(SPEC, {name: value}, TypeError, rf"^{name} must be an int, got {value!r}$")
            for name in (*IDS, "spatial_merge_size", "temporal_merge_size", "padding_value")
            for value in (2.0, "2", True)
        ),
        *(
            refused(SPEC, {name: None}, TypeError, rf"^{name} must be an int, got None$")
            for name in ("spatial_merge_size", "temporal_merge_size", "padding_value")
        ),
        *(
            refused(
                SPEC,
                {name: None},
                ValueError,
                rf"^{name} must be given for 'glm4v' with marker_rule 'last', got None$",
            )
            for name in IDS
        ),
        refused(
            ADJACENT,
            {"vision_start_token_id": None},
            ValueError,
            "^vision_start_token_id must be given for 'qwen3_vl' with marker_rule 'adjacent', got",
        ),
        *(
            refused(
                spec,
                {name: value},
                ValueError,
                rf"^{name} must be from {least} to 2\*\*31 - 1, got {value}$",
            )
            for spec, name, least in (
                *((SPEC, name, 0) for name in IDS),
                (ADJACENT, "video_token_id", 0),
                (ADJACENT, "vision_start_token_id", 0),
                (SPEC, "spatial_merge_size", 1),
                (BLOCKS, "temporal_merge_size", 1),
            )
            for value in (least - 1, -2, 2**31)
        ),
        refused(
            SPEC,
            {"image_token_id": 151341},
            ValueError,
            MUST_DIFFER + r"\(151341, 151341, 151342\)$",
            "image is video start",
        ),
        refused(
            SPEC,
            {"image_token_id": 151342},
            ValueError,
            MUST_DIFFER + r"\(151342, 151341, 151342\)$",
            "image is video end",
        ),
        refused(
            SPEC,
            {"video_start_token_id": 151342},
            ValueError,
            MUST_DIFFER + r"\(151343, 151342, 151342\)$",
            "video start is video end",
        ),
        refused(
            TIMED,
            {"video_token_id": 151655},
            ValueError,
            r"^image_token_id and video_token_id must differ, got \(151655, 151655\)$",
            "image is video",
        ),
        refused(
            ADJACENT,
            {"vision_start_token_id": 151655},
            ValueError,
            "^image_token_id, video_token_id and vision_start_token_id must differ, got ",
            "image is vision start",
        ),
        *(
            refused(
                SPEC,
                {name: "other"},
                ValueError,
                rf"^{name} must be one of {known}, got 'other'$",
            )
            for name, known in {
                "convention": "'sglang', 'transformers', 'vllm'",
                "marker_rule": "'none', 'last', 'count', 'adjacent'",
                "image_time": "'frames', 'none'",
                "video_time": "'frames', 'seconds'",
                "time_order": "'rate', 'seconds'",
                "time_dtype": "'given', 'float32', 'float64', 'int64'",
                "span_rule": "'thw', 'hw'",
                "mask_rule": "'skip', 'ignore'",
                "delta_length": "'padded', 'valid'",
                "position_dtype": "'ids', 'int64', 'float32'",
            }.items()
        ),
        *(
            refused(
                replace(SPEC, marker_rule=rule),
                {"video_token_id": 5},
                ValueError,
                f"^video_token_id must be None with marker_rule '{rule}', which tells videos by",
                f"video_token_id with {rule}",
            )
            for rule in ("last", "count")
        ),
        refused(
            ADJACENT,
            {"mask_rule": "skip"},
            ValueError,
            "^mask_rule must be 'ignore' with marker_rule 'adjacent', which looks at the token "
            "before, masked or not, got 'skip'$",
        ),
        refused(
            TIMED,
            {"separate_frames": True},
            ValueError,
            "^video_time must be 'frames' with separate_frames, got 'seconds'",
        ),
        refused(
            ADJACENT,
            {"temporal_merge_size": 2},
            ValueError,
            "^temporal_merge_size must be 1 with separate_frames, got 2$",
        ),
        *(
            refused(
                TIMED,
                {"tokens_per_second": value},
                TypeError,
                "^tokens_per_second must be a number with video_time 'seconds', got ",
            )
            for value in (None, "4", True)
        ),
        *(
            refused(
                TIMED,
                {"tokens_per_second": value},
                ValueError,
                f"^tokens_per_second must be positive, got {value}$",
            )
            for value in (0, -4, float("nan"), float("inf"))
        ),
        refused(
            SPEC,
            {"tokens_per_second": 4},
            ValueError,
            "^tokens_per_second must be None with video_time 'frames', got 4$",
        ),
    ],
)
def test_a_spec_refuses(spec, changes, error, message):
    with pytest.raises(error, match=message):
        replace(spec, **changes)


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        *((SPEC, {name: 0}) for name in IDS),
        *((SPEC, {name: 2**31 - 1}) for name in (*IDS, "spatial_merge_size")),
        (SPEC, {"spatial_merge_size": 1}),
        (SPEC, {"padding_value": -100}),
        (BLOCKS, {"temporal_merge_size": 2**31 - 1}),
        (BLOCKS, {"image_token_id": None}),
        (TIMED, {"tokens_per_second": 0.5}),
        (TIMED, {"default_seconds": None}),
    ],
    ids=lambda value: " ".join(map(str, *value.items())) if isinstance(value, dict) else "",
)
def test_a_spec_accepts(spec, changes):
    changed = vars(replace(spec, **changes))
    assert changed == {**vars(spec), **changes, "as_text": changed["as_text"]}


@pytest.mark.parametrize("name", [field.name for field in fields(MRopeSpec)])
def test_a_spec_is_frozen(name):
    with pytest.raises(FrozenInstanceError, match=name):
        setattr(SPEC, name, getattr(SPEC, name))


def test_a_spec_is_a_key():
    specs = [spec_of(model_type, convention) for model_type, convention in CORE]
    assert len(dict.fromkeys(specs)) == len(specs)
    twin = replace(SPEC)
    assert twin is not SPEC
    assert {SPEC: "found"}[twin] == "found"
    assert hash(twin) == hash(SPEC)


@each_core
def test_a_specs_repr_builds_it_again(model_type, convention):
    spec = spec_of(model_type, convention)
    assert eval(repr(spec), vars(vecrope)) == spec


@each_core
def test_a_spec_is_read_from_its_text(model_type, convention):
    spec = spec_of(model_type, convention)
    assert MRopeSpec.from_text(spec.as_text) == replace(spec, model_type="")


@pytest.mark.parametrize("name", [*OWN_SPECS, *map(" ".join, OMNI)])
def test_a_spec_with_a_rule_of_its_own_is_read_from_its_text(name):
    spec = OWN_SPECS.get(name) or omni_spec_of(*name.split(), 13.0)
    assert MRopeSpec.from_text(spec.as_text) == replace(spec, model_type="")
    assert "\n" not in spec.as_text  # which Inductor writes into a comment of what it generates


def test_a_spec_is_built_by_name():
    with pytest.raises(TypeError, match="takes 1 positional argument"):
        MRopeSpec("glm4v", "sglang")
