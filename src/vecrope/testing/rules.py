"""What a family adds to a prompt: the symbols of its ids, its arguments, and its reference.

The one place that knows which field of a spec is which argument of a reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache
from inspect import signature
from itertools import count
from typing import Any, NamedTuple

import torch

from vecrope.families.rules import Bailing, GlmImage, Hunyuan, Isaac, MiniCPMV47, OmniRule
from vecrope.spec import MRopeSpec
from vecrope.testing import reference
from vecrope.testing.reference.rows import Answer

__all__ = [
    "Family",
    "family_of",
    "minicpm_rules",
    "omni_reference",
    "rules_of",
    "seconds_of",
    "symbols_of",
    "type_rules_of",
]

Lists = dict[str, Any]

_MINICPM_MARKERS = {
    "image_start_id": "(",
    "image_end_id": ")",
    "slice_start_id": "<",
    "slice_end_id": ">",
    "newline_id": "n",
}
_SYMBOLS = {
    "image_token_id": "I",
    "video_token_id": "V",
    "vision_start_token_id": "<",
    "video_start_token_id": "[",
    "video_end_token_id": "]",
}
_SYMBOLS_OF_OWN_RULES = {
    "audio_token_id": "A",
    "audio_start_token_id": "(",
    "image_start_token_id": "<",
    "image_end_token_id": ">",
    **_MINICPM_MARKERS,
}
# What names a spec or describes the tensors of an answer; every other field is a rule, and an
# argument of the reference by the same name.
_NO_RULES = ("model_type", "convention", "position_dtype", "own_rule")


class Family(NamedTuple):
    """What differs between families.

    Attributes:
        arguments: the arguments of `get_rope_index`, besides `input_ids`, that a prompt has.
        answer: the reference, which takes the spec and, as lists, those of them that are given.
    """

    arguments: tuple[str, ...]
    answer: Callable[[MRopeSpec, Lists], Answer]


def family_of(spec: MRopeSpec) -> Family:
    """Return what the spec's family adds."""
    return _FAMILIES.get(type(spec.own_rule), _FAMILIES[type(None)])


def symbols_of(spec: MRopeSpec) -> dict[str, int]:
    """Return the id of each symbol; markers of which the spec has no id are text, as `t` is."""
    named = [(symbol, getattr(spec, name)) for name, symbol in _SYMBOLS.items()]
    named += [
        (symbol, getattr(spec.own_rule, name, None))
        for name, symbol in _SYMBOLS_OF_OWN_RULES.items()
    ]
    given = {symbol: token_id for symbol, token_id in named if token_id is not None}
    free = (token_id for token_id in count() if token_id not in given.values())
    return {**{symbol: next(free) for symbol in "t<>[]()n" if symbol not in given}, **given}


def rules_of(spec: MRopeSpec) -> Lists:
    """Return the arguments of `reference.get_rope_index` that a spec stands for.

    Raises:
        ValueError: for a family with a rule of its own, which that reference does not know.
    """
    if spec.own_rule is not None:
        raise ValueError(
            f"{spec.model_type!r} is numbered by a rule of its own under convention "
            f"{spec.convention!r}: vecrope.testing.reference has the rule that families share"
        )
    names = (field.name for field in fields(spec) if field.name not in _NO_RULES)
    return {name: getattr(spec, name) for name in names}


def type_rules_of(spec: MRopeSpec) -> Lists:
    """Return the arguments of `reference.token_types` that a spec stands for."""
    return _fields_for(reference.token_types, spec)


def seconds_of(seconds: torch.Tensor | Sequence[float] | None) -> Lists:
    """Return the arguments of `reference.get_rope_index` that say how long a temporal step is."""
    if seconds is None:
        return {}
    if not isinstance(seconds, torch.Tensor):
        return {"second_per_grid_ts": list(seconds)}
    seconds_type = "float64" if seconds.dtype == torch.float64 else "float32"
    return {"second_per_grid_ts": seconds.tolist(), "seconds_type": seconds_type}


def _shared(spec: MRopeSpec, lists: Lists) -> Answer:
    return reference.get_rope_index(**lists, **rules_of(spec))


def omni_reference(spec: MRopeSpec) -> reference.omni.OmniReference:
    """Return the reference for a spec with an `OmniRule`."""
    rule = spec.own_rule
    if not isinstance(rule, OmniRule):
        raise TypeError(f"spec must be that of an omni family, got own_rule {rule!r}")
    rules = reference.omni.OmniReference
    return rules(**_fields_for(rules, spec), rounds=spec.position_dtype == "float32")


def _omni(spec: MRopeSpec, lists: Lists) -> Answer:
    rules, rule = omni_reference(spec), spec.own_rule
    assert isinstance(rule, OmniRule)
    if not {"image_grid_thw", "video_grid_thw"} & lists.keys():
        rules = rules._replace(reads_audio="audio_seqlens" in lists)
        if rule.text_padding_value is not None:
            rules = rules._replace(padding_value=rule.text_padding_value, padding_counts=True)
    return rules.rope_index(**_skipping(spec, lists))


def minicpm_rules(spec: MRopeSpec) -> Lists:
    """Return the arguments of `reference.minicpmv4_7.get_rope_index` that a spec stands for."""
    rule = spec.own_rule
    if not isinstance(rule, MiniCPMV47):
        raise ValueError(f"{spec.model_type!r} has no MiniCPMV47, got {rule!r}")
    return _fields_for(reference.minicpmv4_7.get_rope_index, spec) | {
        "markers": tuple(getattr(rule, name) for name in _MINICPM_MARKERS),
        "downsample_factor": {"16x": 4, "4x": 2}[rule.downsample_mode],
    }


def _minicpm(spec: MRopeSpec, lists: Lists) -> Answer:
    return reference.minicpmv4_7.get_rope_index(**lists, **minicpm_rules(spec))


@cache
def _fields_for(function: Callable[..., Any], spec: MRopeSpec) -> Lists:
    """Return the arguments of a reference that are fields of the spec or, first, its own rule."""
    names, rule = signature(function).parameters, spec.own_rule
    given = {name: value for name, value in vars(spec).items() if name in names}
    return given | {name: getattr(rule, name) for name in names if hasattr(rule, name)}


def _by_fields(function: Callable[..., Answer]) -> Callable[[MRopeSpec, Lists], Answer]:
    return lambda spec, lists: function(**_skipping(spec, lists), **_fields_for(function, spec))


def _skipping(spec: MRopeSpec, lists: Lists) -> Lists:
    """Return the arguments without a mask that the spec ignores."""
    if spec.mask_rule == "skip":
        return lists
    return {name: value for name, value in lists.items() if name != "attention_mask"}


_GRIDS = ("image_grid_thw", "video_grid_thw")
_FAMILIES = {
    type(None): Family(
        ("mm_token_type_ids", *_GRIDS, "attention_mask", "second_per_grid_ts"), _shared
    ),
    OmniRule: Family(
        (*_GRIDS, "attention_mask", "use_audio_in_video", "audio_seqlens", "second_per_grids"),
        _omni,
    ),
    MiniCPMV47: Family(
        ("mm_token_type_ids", "target_sizes", "target_sizes_videos", "attention_mask"), _minicpm
    ),
    Hunyuan: Family(
        ("image_grid_thw", "attention_mask"), _by_fields(reference.hunyuan_vl.get_rope_index)
    ),
    GlmImage: Family(
        ("image_grid_thw", "images_per_sample", "attention_mask"),
        _by_fields(reference.glm_image.get_rope_index),
    ),
    Isaac: Family(("image_grid_thw", "attention_mask"), _by_fields(reference.isaac.get_rope_index)),
    Bailing: Family((*_GRIDS, "attention_mask"), _by_fields(reference.bailing.get_rope_index)),
}
