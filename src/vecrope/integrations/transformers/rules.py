"""What the releases of transformers differ in: signatures, and fields of a family's spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vecrope.integrations.transformers import calls, calls_by_ids
from vecrope.integrations.transformers.calls import Call
from vecrope.spec import MRopeSpec


@dataclass(frozen=True)
class Rules:
    """How the method of one family answered in some releases.

    Args:
        call: answers in its place.
        fields: fields of the spec that differ from those of the newest release.
        own_fields: likewise, of its `own_rule`.
        needs_markers: whether a vision start says where an image or a video begins.
    """

    call: Call
    fields: Mapping[str, Any] = field(default_factory=dict)
    own_fields: Mapping[str, Any] = field(default_factory=dict)
    needs_markers: bool = False

    def spec_of(self, config: Any) -> MRopeSpec:
        """Return the spec of a model's configuration under these rules."""
        spec = MRopeSpec.from_config(config, convention="transformers")
        fields = dict(self.fields)
        if self.own_fields:
            fields["own_rule"] = replace(spec.own_rule, **self.own_fields)  # type: ignore[type-var]
        if self.needs_markers:
            fields["vision_start_token_id"] = config.vision_start_token_id
        return replace(spec, **fields) if fields else spec


# Of 4.49 to 5.1.
_BY_IDS = {"span_rule": "thw", "padding_value": 1, "delta_length": "padded"}
_SECONDS_BY_IDS = {**_BY_IDS, "image_time": "none", "time_order": "seconds"}
_QWEN = {
    "types": Rules(calls.by_types),
    "ids": Rules(calls_by_ids.by_ids, _BY_IDS, needs_markers=True),
}
_GLM = {
    "types": Rules(calls.by_types),
    "ids": Rules(calls_by_ids.by_ids, {**_BY_IDS, "marker_rule": "last"}),
}
_QWEN2_5 = {
    "types": Rules(calls.by_types_and_seconds),
    "types, whole seconds": Rules(calls.by_types_and_seconds, {"time_dtype": "int64"}),
    "ids": Rules(calls_by_ids.by_ids_and_seconds, _SECONDS_BY_IDS, needs_markers=True),
    "ids, whole seconds": Rules(
        calls_by_ids.by_ids_and_seconds,
        {**_SECONDS_BY_IDS, "time_dtype": "int64"},
        needs_markers=True,
    ),
}
_OMNI = {"own rule": Rules(calls.by_ids_with_audio)}
_TYPES = {"types": Rules(calls.by_types)}

# By `model_type`, the newest first; every other family has `_TYPES`.
_RULES: dict[str, dict[str, Rules]] = {
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "glm46v": _GLM,
    "glm_ocr": _GLM,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN2_5,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "paddleocr_vl": _QWEN,
    "ernie4_5_vl_moe": {
        "types": Rules(calls.by_types),
        "optional types": Rules(calls_by_ids.by_optional_types, _BY_IDS),
    },
    "qwen2_5_omni_thinker": _OMNI,
    "qwen2_5_omni_talker": _OMNI,
    "qwen3_omni_moe_thinker": {
        **_OMNI,
        "own rule, n_window 50": Rules(calls.by_ids_with_audio, own_fields={"n_window": 50}),
    },
    "hunyuan_vl": {"own rule": Rules(calls.by_types_of_images)},
    "glm_image": {"own rule": Rules(calls.by_markers_with_targets)},
    "minicpmv4_7": {"own rule": Rules(calls.by_types_of_slices)},
}


def rules_of(model_type: str) -> dict[str, Rules]:
    """Return the rules that a family has had, by their names."""
    return _RULES.get(model_type, _TYPES)
