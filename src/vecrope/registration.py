"""Families that are not known here, told by their users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args

from vecrope.families.family import Family, Path
from vecrope.families.fields import check_one_of
from vecrope.families.names import hint
from vecrope.families.registry import FAMILIES, NOT_MROPE
from vecrope.spec import Convention, MRopeSpec

_FIELDS = {field.name: field.default is MISSING for field in fields(MRopeSpec)}
_NOT_RULES = ("model_type", "convention", "own_rule")


def register_family(
    model_type: str,
    *,
    rules: Mapping[str, Mapping[str, Any]],
    paths: Mapping[str, Path],
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Add a family that `MRopeSpec.for_model` and `MRopeSpec.from_config` then know by its name.

    The registration holds for this process. The workers of a serving engine are processes of their
    own: call this function in the module that registers the model with the engine, which each
    worker imports. Registering the same family again is allowed.

    Args:
        model_type: the `model_type` of the family's configuration.
        rules: for each convention (`"transformers"`, `"sglang"` or `"vllm"`), the fields of
            `MRopeSpec` that are the same for all checkpoints.
        paths: for each other field, where a configuration keeps it: a dotted path, or several, of
            which the first that exists is read.
        defaults: the values of these fields in the configuration class, for `for_model`.

    Raises:
        TypeError: if a field has a value of the wrong type.
        ValueError: for an unknown convention or field, a missing field, fields that contradict
            each other, and the name of another family.

    Example:
        >>> import vecrope
        >>> vecrope.register_family(
        ...     "example_vl",
        ...     rules={
        ...         "vllm": dict(
        ...             marker_rule="none", separate_frames=True, span_rule="thw",
        ...             padding_value=0, delta_length="valid",
        ...         )
        ...     },
        ...     paths={
        ...         "image_token_id": "image_token_id",
        ...         "video_token_id": "video_token_id",
        ...         "spatial_merge_size": "vision_config.spatial_merge_size",
        ...     },
        ...     defaults={"image_token_id": 9, "video_token_id": 10, "spatial_merge_size": 2},
        ... )
        >>> vecrope.MRopeSpec.for_model("example_vl", convention="vllm").image_token_id
        9
    """
    if not isinstance(model_type, str) or not model_type:
        raise TypeError(f"model_type must be a name, got {model_type!r}")
    dicts = {"rules": rules, "paths": paths, "defaults": defaults or {}}
    if isinstance(rules, Mapping):
        dicts |= {f"rules[{name!r}]": values for name, values in rules.items()}
    for name, given in dicts.items():
        if not isinstance(given, Mapping):
            raise TypeError(f"{name} must be a dict, got {type(given).__name__}")
    for name, path in paths.items():
        if not isinstance(path, str | tuple):
            raise TypeError(f"paths[{name!r}] must be a dotted path or a tuple, got {path!r}")
    family = Family(
        rules={convention: dict(values) for convention, values in rules.items()},
        paths=dict(paths),
        defaults=dict(defaults or {}),
    )
    known = FAMILIES.get(model_type)
    if model_type in NOT_MROPE or (known is not None and known != family):
        raise ValueError(f"model_type {model_type!r} is a family that vecrope knows already")
    _check(model_type, family)
    FAMILIES[model_type] = family


def list_families(convention: Convention | None = None) -> list[str]:
    """Return the model types that `MRopeSpec.for_model` knows, sorted.

    Args:
        convention: an upstream, to list only the families that it has; None: all.

    Raises:
        ValueError: for an unknown convention.
    """
    if convention is not None:
        check_one_of("convention", convention, get_args(Convention))
    return sorted(name for name, family in FAMILIES.items() if convention in (None, *family.rules))


def _check(model_type: str, family: Family) -> None:
    """Check the data of a family by building its spec under each of its conventions."""
    _check_names(family.paths, f"paths of {model_type!r}")
    for name in family.defaults:
        if name not in family.paths:
            raise ValueError(
                f"defaults of {model_type!r}: {name!r} is not in paths; "
                + hint(name, family.paths, "paths")
            )
    if not family.rules:
        raise ValueError(f"rules of {model_type!r} must hold a convention, got none")
    for convention, values in family.rules.items():
        if convention not in get_args(Convention):
            known = ", ".join(map(repr, get_args(Convention)))
            raise ValueError(
                f"rules of {model_type!r} must be keyed by {known}, got {convention!r}"
            )
        where = f"rules[{convention!r}] of {model_type!r}"
        _check_names(values, where)
        given = {**values, **family.paths}
        for name, required in _FIELDS.items():
            if required and name not in given and name not in _NOT_RULES:
                raise ValueError(f"{where}: {name} is missing, and paths has none for it")
        # A number stands in for what only a configuration has: the other fields are checked by it.
        unknown = {name: 2**30 + at for at, name in enumerate(family.paths) if name not in values}
        MRopeSpec(
            model_type=model_type,
            convention=convention,  # type: ignore[arg-type]
            **{**unknown, **values, **family.defaults},
        )


def _check_names(names: Mapping[str, Any], where: str) -> None:
    known = [name for name in _FIELDS if name not in _NOT_RULES]
    for name in names:
        if name not in known:
            raise ValueError(
                f"{where}: {name!r} is not a field of MRopeSpec; "
                + hint(name, known, "the docstring of MRopeSpec")
            )
