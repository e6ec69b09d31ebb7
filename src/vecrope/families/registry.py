"""Every family by its name, and what its defaults and its configuration make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vecrope.families import (
    bailing,
    cohere_compass,
    ernie4_5_vl,
    glm,
    glm_image,
    hunyuan_vl,
    isaac,
    minicpmv4_7,
    paddleocr_vl,
    plain,
    qwen_omni,
    qwen_vl,
    vllm_only,
)
from vecrope.families.family import Family, Path
from vecrope.families.names import hint, whole_model_of
from vecrope.families.rules import OwnRule

FAMILIES: dict[str, Family] = {
    **glm.FAMILIES,
    **qwen_vl.FAMILIES,
    **paddleocr_vl.FAMILIES,
    **cohere_compass.FAMILIES,
    **ernie4_5_vl.FAMILIES,
    **vllm_only.FAMILIES,
    **qwen_omni.FAMILIES,
    **hunyuan_vl.FAMILIES,
    **glm_image.FAMILIES,
    **isaac.FAMILIES,
    **bailing.FAMILIES,
    **minicpmv4_7.FAMILIES,
    **plain.FAMILIES,
}

# Model types of checkpoints whose family has another name here.
_CHECKPOINT_NAMES = {"Keye": "keye", "KeyeVL1_5": "keye_vl1_5"}

# Models whose code has, or inherits, parts of M-RoPE, and does not use them.
NOT_MROPE = ("exaone4_5", "glm5_next", "lfm3_vl", "minicpmv4_6", "qwen3_asr", "video_llama_3")

# Families with M-RoPE that are not implemented, and what they would need.
NOT_SUPPORTED = {
    "hy_v4_vl": "each row of an image ends with a newline token, which has a column of its own",
}

# Fields that an upstream has a default for where a configuration lacks them.
_OPTIONAL = ("separate_frames", "tokens_per_second")


def class_defaults(model_type: str, convention: str, given: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a spec with the default ids, less those that are given.

    Raises:
        ValueError: if there is no such family or upstream, or a field has no default.
    """
    family = _family_of(model_type, convention)
    defaults = {**family.defaults, **family.defaults_by_convention.get(convention, {})}
    for name in _paths(family, convention):
        if name not in defaults and name not in given:
            raise ValueError(
                f"{model_type!r} has no default {name} under convention {convention!r}: pass "
                f"{name}=..., or use from_config"
            )
    values = {**family.rules[convention], **defaults}
    own_rule = _own_rule(family, convention)
    if own_rule is not None and "own_rule" not in given:
        for name in family.own_paths:
            if name not in family.own_defaults:
                raise ValueError(
                    f"{model_type!r} has no default {name}: pass own_rule=..., of "
                    "vecrope.families.rules, or use from_config"
                )
        values["own_rule"] = own_rule(**family.own_defaults)
    return values


def read_config(config: Any, convention: str) -> tuple[str, dict[str, Any]]:
    """Return the model type of a configuration and the fields of its spec.

    Raises:
        ValueError: if there is no such family or upstream, or a field is missing.
    """
    if isinstance(config, str):
        of_name = "MRopeSpec.for_model takes the name of a family"
        of_hub = "load it first, with transformers.AutoConfig.from_pretrained for example"
        raise TypeError(
            "config must be a configuration or the dict of a config.json, got the name "
            f"{config!r}: {of_name if config in FAMILIES else of_hub}"
        )
    model_type = _lookup(config, "model_type")
    model_type = _CHECKPOINT_NAMES.get(model_type, model_type)
    family = _family_of(model_type, convention)
    defaults = family.defaults_by_convention.get(convention, {})
    values = dict(family.rules[convention])
    for name, path in _paths(family, convention).items():
        # An upstream that has a default of its own does not need the field.
        optional = name in _OPTIONAL and name in defaults
        values[name] = _lookup(config, path, defaults.get(name) if optional else None)
    own_rule = _own_rule(family, convention)
    if own_rule is not None:
        found = {
            name: _lookup(config, path, family.own_defaults.get(name))
            for name, path in family.own_paths.items()
        }
        values["own_rule"] = own_rule(**found)
    return model_type, values


def _own_rule(family: Family, convention: str) -> Callable[..., OwnRule] | None:
    if convention in family.shared_in:
        return None
    return family.own_rule_by_convention.get(convention, family.own_rule)


def _family_of(model_type: object, convention: str) -> Family:
    if not isinstance(model_type, str):
        config = hasattr(model_type, "model_type") or isinstance(model_type, Mapping)
        remedy = "; MRopeSpec.from_config takes a configuration" if config else ""
        raise TypeError(f"model_type must be a name, got {type(model_type).__name__}{remedy}")
    family = FAMILIES.get(model_type)
    if family is not None and convention in family.rules:
        return family
    if model_type in NOT_MROPE:
        raise ValueError(
            f"{model_type!r} has no M-RoPE under convention {convention!r}: its positions are the "
            "plain index of each token, which the model makes itself"
        )
    if model_type in NOT_SUPPORTED:
        raise ValueError(f"{model_type!r} is not supported: {NOT_SUPPORTED[model_type]}")
    whole = whole_model_of(model_type, FAMILIES)
    if whole is not None:
        raise ValueError(
            f"model_type {model_type!r} is a part of {whole!r}: pass the configuration of the "
            "whole model"
        )
    if family is None:
        raise ValueError(
            f"model_type {model_type!r} is not a family that vecrope knows: "
            + hint(model_type, FAMILIES, "vecrope.list_families()")
        )
    known = " or ".join(map(repr, family.rules))
    raise ValueError(
        f"convention must be {known} for {model_type!r}, got {convention!r}: that upstream does "
        "not have the family"
    )


def _paths(family: Family, convention: str) -> dict[str, Path]:
    return {**family.paths, **family.paths_by_convention.get(convention, {})}


def _lookup(config: Any, path: Path, default: Any = None) -> Any:
    paths = (path,) if isinstance(path, str) else path
    for candidate in paths:
        node = config
        for name in candidate.split("."):
            node = node.get(name) if isinstance(node, Mapping) else getattr(node, name, None)
            if node is None:
                break
        if node is not None:
            return node
    if default is not None:
        return default
    listed = " or ".join(map(repr, paths))
    raise ValueError(f"the configuration has no field {listed} (of {type(config).__name__})")
