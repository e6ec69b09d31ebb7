import json
from dataclasses import FrozenInstanceError, fields, replace
from types import SimpleNamespace

import pytest
from transformers import Glm4vConfig, Glm4vMoeConfig, Glm46VConfig, GlmOcrConfig

import vecrope
from vecrope import MRopeSpec

CONFIGS = {
    "glm4v": Glm4vConfig,
    "glm4v_moe": Glm4vMoeConfig,
    "glm46v": Glm46VConfig,
    "glm_ocr": GlmOcrConfig,
}
IDS = ("image_token_id", "video_start_token_id", "video_end_token_id")
RULES = {
    "sglang": {
        "marker_rule": "last",
        "span_rule": "thw",
        "padding_value": 1,
        "delta_length": "padded",
    },
    "transformers": {
        "marker_rule": "count",
        "span_rule": "hw",
        "padding_value": 0,
        "delta_length": "valid",
    },
}
SPEC = MRopeSpec.for_model("glm4v", convention="sglang")

FAMILIES = pytest.mark.parametrize("model_type", CONFIGS)
CONVENTIONS = pytest.mark.parametrize("convention", RULES)


def as_object(tree):
    return SimpleNamespace(
        **{
            str(name): as_object(value) if isinstance(value, dict) else value
            for name, value in tree.items()
        }
    )


FORMS = pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda config: config, id="config"),
        pytest.param(lambda config: config.to_dict(), id="dict"),
        pytest.param(lambda config: json.loads(config.to_json_string()), id="config.json"),
        pytest.param(lambda config: json.loads(json.dumps(config.to_dict())), id="json of a dict"),
        pytest.param(lambda config: as_object(config.to_dict()), id="object"),
        pytest.param(lambda config: SimpleNamespace(**config.to_dict()), id="object of dicts"),
        pytest.param(
            lambda config: {"model_type": config.model_type, **vars(config)}, id="dict of objects"
        ),
    ],
)


@FORMS
@FAMILIES
@CONVENTIONS
def test_from_config_reads_every_field(model_type, convention, form):
    config = CONFIGS[model_type](
        image_token_id=11,
        video_start_token_id=12,
        video_end_token_id=13,
        vision_config={"spatial_merge_size": 3},
    )
    assert MRopeSpec.from_config(form(config), convention=convention) == MRopeSpec(
        model_type=model_type,
        convention=convention,
        image_token_id=11,
        video_start_token_id=12,
        video_end_token_id=13,
        spatial_merge_size=3,
        **RULES[convention],
    )


@FAMILIES
@CONVENTIONS
def test_defaults_are_those_of_transformers(model_type, convention):
    config = CONFIGS[model_type]()
    assert config.model_type == model_type
    spec = MRopeSpec.for_model(model_type, convention=convention)
    assert [getattr(spec, name) for name in IDS] == [getattr(config, name) for name in IDS]
    assert spec.spatial_merge_size == config.vision_config.spatial_merge_size
    assert spec == MRopeSpec.from_config(config, convention=convention)


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


def from_config(model_type, *, convention):
    config = {**Glm4vConfig().to_dict(), "model_type": model_type}
    return MRopeSpec.from_config(config, convention=convention)


BUILDERS = pytest.mark.parametrize(
    "build", [MRopeSpec.for_model, from_config], ids=["for_model", "from_config"]
)


@BUILDERS
@pytest.mark.parametrize("model_type", ["qwen2_vl", "glm4v_text", "GLM4V", ""])
def test_an_unknown_model_type_is_named_next_to_the_known(build, model_type):
    known = "'glm4v', 'glm4v_moe', 'glm46v', 'glm_ocr'"
    message = rf"^model_type must be one of {known}, got {model_type!r}$"
    with pytest.raises(ValueError, match=message):
        build(model_type, convention="sglang")


@BUILDERS
@pytest.mark.parametrize("convention", ["SGLang", "hf", None])
def test_an_unknown_convention_is_named_next_to_the_known(build, convention):
    message = rf"^convention must be one of 'sglang', 'transformers', got {convention!r}$"
    with pytest.raises(ValueError, match=message):
        build("glm4v", convention=convention)


@BUILDERS
def test_the_convention_has_no_default(build):
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'convention'"):
        build("glm4v")


def test_a_field_of_the_wrong_type_in_a_configuration_is_named():
    config = {**Glm4vConfig().to_dict(), "model_type": "glm4v", "image_token_id": "151343"}
    with pytest.raises(TypeError, match=r"^image_token_id must be an int, got '151343'$"):
        MRopeSpec.from_config(config, convention="sglang")


MUST_DIFFER = "^image_token_id, video_start_token_id and video_end_token_id must differ, got "


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        *(
            pytest.param(
                {name: value},
                TypeError,
                rf"^{name} must be an int, got {value!r}$",
                id=f"{name} {value!r}",
            )
            for name in (*IDS, "spatial_merge_size", "padding_value")
            for value in (2.0, "2", True, None)
        ),
        *(
            pytest.param(
                {name: value},
                ValueError,
                rf"^{name} must be from {least} to 2\*\*31 - 1, got {value}$",
                id=f"{name} {value}",
            )
            for name, least in (*((name, 0) for name in IDS), ("spatial_merge_size", 1))
            for value in (least - 1, -2, 2**31)
        ),
        pytest.param(
            {"image_token_id": 151341},
            ValueError,
            MUST_DIFFER + r"\(151341, 151341, 151342\)$",
            id="image is video start",
        ),
        pytest.param(
            {"image_token_id": 151342},
            ValueError,
            MUST_DIFFER + r"\(151342, 151341, 151342\)$",
            id="image is video end",
        ),
        pytest.param(
            {"video_start_token_id": 151342},
            ValueError,
            MUST_DIFFER + r"\(151343, 151342, 151342\)$",
            id="video start is video end",
        ),
        *(
            pytest.param(
                {name: "other"},
                ValueError,
                rf"^{name} must be one of {known}, got 'other'$",
                id=f"{name} other",
            )
            for name, known in {
                "convention": "'sglang', 'transformers'",
                "marker_rule": "'last', 'count'",
                "span_rule": "'thw', 'hw'",
                "delta_length": "'padded', 'valid'",
            }.items()
        ),
    ],
)
def test_a_spec_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        replace(SPEC, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: 0} for name in IDS),
        *({name: 2**31 - 1} for name in (*IDS, "spatial_merge_size")),
        {"spatial_merge_size": 1},
        {"padding_value": -100},
    ],
    ids=lambda changes: " ".join(map(str, *changes.items())),
)
def test_a_spec_accepts(changes):
    changed = vars(replace(SPEC, **changes))
    assert changed == {**vars(SPEC), **changes}


@pytest.mark.parametrize("name", [field.name for field in fields(MRopeSpec)])
def test_a_spec_is_frozen(name):
    with pytest.raises(FrozenInstanceError, match=name):
        setattr(SPEC, name, getattr(SPEC, name))


def test_a_spec_is_a_key():
    specs = [
        MRopeSpec.for_model(model_type, convention=convention)
        for model_type in CONFIGS
        for convention in RULES
    ]
    assert len(dict.fromkeys(specs)) == len(specs)
    twin = replace(SPEC)
    assert twin is not SPEC
    assert {SPEC: "found"}[twin] == "found"
    assert hash(twin) == hash(SPEC)


def test_a_specs_repr_builds_it_again():
    assert eval(repr(SPEC), vars(vecrope)) == SPEC
