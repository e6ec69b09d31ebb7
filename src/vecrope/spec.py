"""What distinguishes one M-RoPE family, under one convention, from another: data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Convention = Literal["sglang", "transformers"]
MarkerRule = Literal["last", "count"]
SpanRule = Literal["thw", "hw"]
DeltaLength = Literal["padded", "valid"]

# What the upstreams disagree on for the GLM family, wherever it is the same family.
_CONVENTIONS: dict[str, dict[str, Any]] = {
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

# The class defaults of transformers' configurations; a test compares them with the classes.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "glm4v": {
        "image_token_id": 151343,
        "video_start_token_id": 151341,
        "video_end_token_id": 151342,
        "spatial_merge_size": 2,
    },
    "glm4v_moe": {
        "image_token_id": 151363,
        "video_start_token_id": 151341,
        "video_end_token_id": 151342,
        "spatial_merge_size": 2,
    },
    "glm46v": {
        "image_token_id": 151343,
        "video_start_token_id": 151361,
        "video_end_token_id": 151362,
        "spatial_merge_size": 2,
    },
    "glm_ocr": {
        "image_token_id": 59280,
        "video_start_token_id": 59258,
        "video_end_token_id": 59259,
        "spatial_merge_size": 2,
    },
}

# Where a configuration keeps each field, as a dotted path.
_CONFIG_PATHS: dict[str, str] = {
    "image_token_id": "image_token_id",
    "video_start_token_id": "video_start_token_id",
    "video_end_token_id": "video_end_token_id",
    "spatial_merge_size": "vision_config.spatial_merge_size",
}


@dataclass(frozen=True)
class MRopeSpec:
    """The rules by which one model family numbers its tokens, under one convention.

    Build it with `from_config` or `for_model`. A spec is immutable and hashable, so that it can be
    a constant of a compiled graph.

    Args:
        model_type: the `model_type` of the family's configuration.
        convention: the upstream whose answers are reproduced, `"sglang"` or `"transformers"`.
        image_token_id: the placeholder id of images and of video frames.
        video_start_token_id: the id after which placeholders belong to a video.
        video_end_token_id: the id after which they no longer do.
        spatial_merge_size: patches per token along each spatial side of a grid, at least 1.
        marker_rule: when a placeholder is a video's. `"last"`: the last marker before it, in its
            row, is a start (SGLang). `"count"`: more starts than ends stand before it in its row
            (transformers' processors).
        span_rule: how far an image moves the running position. `"thw"`: past its largest position
            (SGLang). `"hw"`: by the larger of height and width (transformers). They differ only
            for an image with more temporal than spatial extent.
        padding_value: the position written at masked tokens.
        delta_length: the length that `rope_deltas` is measured against: the row's `"padded"` length
            or its number of `"valid"` (unmasked) tokens.

    Raises:
        ValueError: on a value outside the ones named above.

    Example:
        >>> import vecrope
        >>> spec = vecrope.MRopeSpec.for_model("glm4v", convention="sglang")
        >>> spec.image_token_id, spec.spatial_merge_size, spec.padding_value
        (151343, 2, 1)
    """

    model_type: str
    convention: Convention
    image_token_id: int
    video_start_token_id: int
    video_end_token_id: int
    spatial_merge_size: int
    marker_rule: MarkerRule
    span_rule: SpanRule
    padding_value: int
    delta_length: DeltaLength

    def __post_init__(self) -> None:
        for name in (*_CONFIG_PATHS, "padding_value"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r}")
        for name in _CONFIG_PATHS:
            least = int(name == "spatial_merge_size")
            if not least <= getattr(self, name) < 2**31:
                raise ValueError(
                    f"{name} must be from {least} to 2**31 - 1, got {getattr(self, name)}"
                )
        markers = (self.image_token_id, self.video_start_token_id, self.video_end_token_id)
        if len(set(markers)) < 3:
            raise ValueError(
                "image_token_id, video_start_token_id and video_end_token_id must differ, "
                f"got {markers}"
            )
        for name, known in (
            ("convention", Convention),
            ("marker_rule", MarkerRule),
            ("span_rule", SpanRule),
            ("delta_length", DeltaLength),
        ):
            _check_one_of(name, getattr(self, name), get_args(known))

    @classmethod
    def for_model(cls, model_type: str, *, convention: Convention) -> MRopeSpec:
        """Return the spec of a family with the default ids of its transformers configuration class.

        Args:
            model_type: `"glm4v"`, `"glm4v_moe"`, `"glm46v"` or `"glm_ocr"`.
            convention: the upstream whose answers are reproduced.

        Raises:
            ValueError: if the model type or the convention is not known.
        """
        _check_one_of("model_type", model_type, _DEFAULTS)
        _check_one_of("convention", convention, _CONVENTIONS)
        return cls(
            model_type=model_type,
            convention=convention,
            **_DEFAULTS[model_type],
            **_CONVENTIONS[convention],
        )

    @classmethod
    def from_config(cls, config: Any, *, convention: Convention) -> MRopeSpec:
        """Return the spec that a model's configuration describes.

        Args:
            config: a transformers configuration, any object with the same attributes, or the dict
                of a parsed `config.json`.
            convention: the upstream whose answers are reproduced.

        Raises:
            ValueError: if the model type or the convention is not known, or if a field is missing.
            TypeError: if a field is not an int.
        """
        model_type = _lookup(config, "model_type")
        _check_one_of("model_type", model_type, _DEFAULTS)
        _check_one_of("convention", convention, _CONVENTIONS)
        values = {name: _lookup(config, path) for name, path in _CONFIG_PATHS.items()}
        return cls(
            model_type=model_type, convention=convention, **values, **_CONVENTIONS[convention]
        )


def _check_one_of(name: str, value: object, known: Any) -> None:
    if value not in tuple(known):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def _lookup(config: Any, path: str) -> Any:
    node = config
    for name in path.split("."):
        found = node.get(name) if isinstance(node, Mapping) else getattr(node, name, None)
        if found is None:
            raise ValueError(
                f"the configuration has no field {path!r} (of {type(config).__name__})"
            )
        node = found
    return node
