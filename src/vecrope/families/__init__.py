"""Every family as data: default ids, fields of configurations, and each upstream's rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from vecrope.families.rules import Bailing, GlmImage, Hunyuan, Isaac, OmniRule, OwnRule, canvas_rule

Fields = Mapping[str, Any]
# Dotted paths of a configuration, the first one that is there to be read.
Path = str | tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One model family, as its configuration describes it and each upstream numbers it.

    A new family is an entry of `FAMILIES`: `paths` says where a configuration keeps the fields of
    the spec that differ from checkpoint to checkpoint, `defaults` what they are in the class of the
    configuration, and `rules`, by convention, the other fields.
    """

    rules: Mapping[str, Fields]
    paths: Mapping[str, Path]
    defaults: Fields = field(default_factory=dict)
    # Paths that one convention reads elsewhere, or besides, and their defaults.
    paths_by_convention: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    defaults_by_convention: Mapping[str, Fields] = field(default_factory=dict)
    # Makes the data of a rule of the family's own from the values found by `own_paths`, under every
    # convention but those in `shared_in`.
    own_rule: Callable[..., OwnRule] | None = None
    shared_in: Sequence[str] = ()
    own_rule_by_convention: Mapping[str, Callable[..., OwnRule]] = field(default_factory=dict)
    own_paths: Mapping[str, Path] = field(default_factory=dict)
    own_defaults: Fields = field(default_factory=dict)


# What each upstream does for nearly every family: at masked tokens, with a block of more temporal
# than spatial extent, and in the length that deltas are measured against. vLLM has no padding; a
# row's unmasked tokens are one of its requests.
_TRANSFORMERS = {"span_rule": "hw", "padding_value": 0, "delta_length": "valid"}
_SGLANG = {
    "span_rule": "thw",
    "mask_rule": "ignore",
    "padding_value": 0,
    "delta_length": "padded",
}
_VLLM = {
    "span_rule": "thw",
    "padding_value": 0,
    "delta_length": "valid",
    "position_dtype": "int64",
    "multi_frame_images": False,
}

# How placeholders are recognised, and whether a video is a block or frames.
_BY_IDS = {"marker_rule": "none", "separate_frames": False}
_BY_NEIGHBOUR = {"marker_rule": "adjacent", "separate_frames": False}
_BY_MARKERS = {"marker_rule": "last", "separate_frames": False}
_FRAMES_BY_IDS = {"marker_rule": "none", "separate_frames": True}
_FRAMES_BY_NEIGHBOUR = {"marker_rule": "adjacent", "separate_frames": True}
_FRAMES_BY_MARKERS = {"marker_rule": "last", "separate_frames": True}
_FRAMES_BY_MARKER_COUNT = {"marker_rule": "count", "separate_frames": True}

# In which order, and how precisely, a video's seconds become positions.
_SECONDS_TRANSFORMERS = {"video_time": "seconds", "time_order": "rate", "default_seconds": 1.0}
_SECONDS_SGLANG = {
    "image_time": "none",
    "video_time": "seconds",
    "time_order": "seconds",
    "default_seconds": 1.0,
}
_SECONDS_VLLM = {**_SECONDS_TRANSFORMERS, "time_dtype": "float64"}

_VISION_PATHS: dict[str, Path] = {
    "image_token_id": "image_token_id",
    "video_token_id": "video_token_id",
    "spatial_merge_size": "vision_config.spatial_merge_size",
}
_NEIGHBOUR_PATHS: dict[str, Path] = {"vision_start_token_id": "vision_start_token_id"}
_RATE_PATHS: dict[str, Path] = {"tokens_per_second": "vision_config.tokens_per_second"}
_MARKER_PATHS: dict[str, Path] = {
    "image_token_id": "image_token_id",
    "video_start_token_id": "video_start_token_id",
    "video_end_token_id": "video_end_token_id",
    "spatial_merge_size": "vision_config.spatial_merge_size",
}
_ERNIE_ORIGINAL_PATHS: dict[str, Path] = {
    "image_token_id": ("im_patch_id", "image_token_id"),
    "video_start_token_id": "video_start_token_id",
    "video_end_token_id": "video_end_token_id",
    "spatial_merge_size": ("spatial_conv_size", "vision_config.spatial_merge_size"),
    "temporal_merge_size": ("temporal_conv_size", "vision_config.temporal_merge_size"),
}


# Its grids are in tokens, and markers tell its images.
_GLM_IMAGE = {**_BY_IDS, "spatial_merge_size": 1}
# By its name and its older one, in a nested configuration and in one that is not.
_HUNYUAN_SECTION_PATHS = tuple(
    f"{place}.{name}"
    for name in ("mrope_section", "xdrope_section")
    for place in (
        "text_config.rope_parameters",
        "text_config.rope_scaling",
        "rope_parameters",
        "rope_scaling",
    )
)


def _in_text_config(name: str) -> tuple[str, ...]:
    return f"text_config.{name}", f"llm_config.{name}"


def _vision(image: int, video: int) -> dict[str, int]:
    return {"image_token_id": image, "video_token_id": video, "spatial_merge_size": 2}


def _glm(image: int, video_start: int, video_end: int, *, vllm: bool = True) -> Family:
    rules: dict[str, Fields] = {
        "transformers": {**_TRANSFORMERS, **_FRAMES_BY_MARKER_COUNT},
        "sglang": {**_SGLANG, **_FRAMES_BY_MARKERS, "mask_rule": "skip", "padding_value": 1},
    }
    if vllm:
        rules["vllm"] = {**_VLLM, **_FRAMES_BY_MARKERS, "frames_may_touch": False}
    return Family(
        rules,
        _MARKER_PATHS,
        {
            "image_token_id": image,
            "video_start_token_id": video_start,
            "video_end_token_id": video_end,
            "spatial_merge_size": 2,
        },
    )


def _frames_between_timestamps(image: int, video: int, vision_start: int) -> Family:
    return Family(
        {
            "transformers": {**_TRANSFORMERS, **_FRAMES_BY_IDS},
            "sglang": {**_SGLANG, **_FRAMES_BY_NEIGHBOUR},
            "vllm": {**_VLLM, **_FRAMES_BY_IDS},
        },
        _VISION_PATHS,
        _vision(image, video),
        paths_by_convention={"sglang": _NEIGHBOUR_PATHS},
        defaults_by_convention={"sglang": {"vision_start_token_id": vision_start}},
    )


def _only_vllm(*, multi_frame_images: bool) -> Family:
    rules = {**_VLLM, **_FRAMES_BY_IDS, "multi_frame_images": multi_frame_images}
    return Family({"vllm": rules}, _VISION_PATHS, {"spatial_merge_size": 2})


def _plain(*conventions: str) -> Family:
    rules = {
        "transformers": _TRANSFORMERS,
        "sglang": _SGLANG,
        "vllm": _VLLM,
    }
    no_placeholder = {"image_token_id": None, "spatial_merge_size": 1, **_BY_IDS}
    return Family({name: {**rules[name], **no_placeholder} for name in conventions}, {})


# The omni families keep these in their thinker, whose configuration may be given alone. Only the
# talker's class has a default for the start of an image or a video; it is that of all checkpoints.
def _thinker(*names: str) -> tuple[str, ...]:
    return tuple(f"{part}{name}" for part in ("thinker_config.", "") for name in names)


_OMNI_PATHS: dict[str, Path] = {
    "image_token_id": _thinker("image_token_id", "image_token_index"),
    "video_token_id": _thinker("video_token_id", "video_token_index"),
    "vision_start_token_id": (
        *_thinker("vision_start_token_id"),
        "talker_config.vision_start_token_id",
    ),
    "spatial_merge_size": _thinker("vision_config.spatial_merge_size"),
    "tokens_per_second": _thinker("position_id_per_seconds"),
}
_OMNI_DEFAULTS = {
    **_vision(151655, 151656),
    "vision_start_token_id": 151652,
    "tokens_per_second": 25,
}
_OMNI_OWN_PATHS: dict[str, Path] = {
    "audio_token_id": _thinker("audio_token_id", "audio_token_index"),
    "audio_start_token_id": _thinker("audio_start_token_id"),
}
_OMNI_OWN_DEFAULTS = {"audio_token_id": 151646, "audio_start_token_id": 151647}
_OMNI_TRANSFORMERS = {
    **_TRANSFORMERS,
    **_BY_IDS,
    "span_rule": "thw",
    "video_time": "seconds",
    "time_order": "seconds",
    "time_dtype": "float32",
}
_OMNI_VLLM = {**_VLLM, **_BY_IDS, **_SECONDS_VLLM, "multi_frame_images": True}

_QWEN2_5_OMNI = Family(
    {
        "transformers": {**_OMNI_TRANSFORMERS, "padding_value": 1},
        "vllm": _OMNI_VLLM,
    },
    _OMNI_PATHS,
    _OMNI_DEFAULTS,
    paths_by_convention={
        "vllm": {"tokens_per_second": _thinker("vision_config.tokens_per_second")}
    },
    defaults_by_convention={"vllm": {"tokens_per_second": 25}},
    own_rule=partial(
        OmniRule,
        whole_times=True,
        interleave="walk",
        sound_markers="shared",
        sound_end="piece",
        text_padding_value=1,
        text_dtype="int64",
    ),
    own_rule_by_convention={
        "vllm": partial(
            OmniRule,
            whole_times=True,
            interleave="count",
            sound_markers="early",
            sound_end="block",
            text_dtype="int64",
        )
    },
    own_paths={**_OMNI_OWN_PATHS, "seconds_per_chunk": _thinker("seconds_per_chunk")},
    own_defaults={**_OMNI_OWN_DEFAULTS, "seconds_per_chunk": 2},
)


def _merged_by_time(*, n_window: int, reads_window: bool = False, **fields: Any) -> OwnRule:
    """Return the rule of qwen3_omni_moe; only transformers reads the window of its encoder."""
    return OmniRule(
        n_window=n_window if reads_window else 50,
        interleave="merge",
        sound_markers="own",
        **fields,
    )


_QWEN3_OMNI_MOE = Family(
    {
        "transformers": {**_OMNI_TRANSFORMERS, "position_dtype": "float32"},
        "sglang": {**_OMNI_TRANSFORMERS, **_SGLANG, "position_dtype": "float32"},
        "vllm": {**_OMNI_VLLM, "default_seconds": 2.0},
    },
    _OMNI_PATHS,
    _OMNI_DEFAULTS,
    own_rule=partial(
        _merged_by_time,
        reads_window=True,
        whole_times=False,
        sound_end="piece",
        text_padding_value=1,
        text_dtype="float32",
    ),
    own_rule_by_convention={
        "sglang": partial(
            _merged_by_time, whole_times=False, sound_end="piece", text_dtype="int64"
        ),
        "vllm": partial(_merged_by_time, whole_times=True, sound_end="block", text_dtype="int64"),
    },
    own_paths={**_OMNI_OWN_PATHS, "n_window": _thinker("audio_config.n_window")},
    own_defaults={**_OMNI_OWN_DEFAULTS, "n_window": 50},
)


# Fields that an upstream has a default for where a configuration lacks them.
_OPTIONAL = ("separate_frames", "tokens_per_second")


def _canvas() -> Family:
    upstreams = {"transformers": _TRANSFORMERS, "sglang": _SGLANG, "vllm": _VLLM}
    # Patches per token are the rule's, which reads them off the mode.
    fields = {**_FRAMES_BY_IDS, "spatial_merge_size": 1, "position_dtype": "int64"}
    markers = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
    others = ("downsample_mode", "uses_mrope_canvas", "mrope_mode")
    return Family(
        {name: {**rules, **fields} for name, rules in upstreams.items()},
        {"image_token_id": "image_token_id", "video_token_id": "video_token_id"},
        own_rule=partial(canvas_rule, "transformers"),
        own_rule_by_convention={name: partial(canvas_rule, name) for name in ("sglang", "vllm")},
        own_paths={name: name for name in (*markers, *others)},
        own_defaults={"downsample_mode": "16x", "uses_mrope_canvas": False, "mrope_mode": ""},
    )


FAMILIES: dict[str, Family] = {
    "glm4v": _glm(151343, 151341, 151342),
    "glm4v_moe": _glm(151363, 151341, 151342),
    "glm46v": _glm(151343, 151361, 151362, vllm=False),
    "glm_ocr": _glm(59280, 59258, 59259),
    "qwen2_vl": Family(
        {
            "transformers": {**_TRANSFORMERS, **_BY_IDS},
            "sglang": {**_SGLANG, **_BY_NEIGHBOUR},
            # vLLM numbers it as it does qwen2_5_vl, at one position a second where the
            # configuration names no rate.
            "vllm": {**_VLLM, **_BY_IDS, **_SECONDS_VLLM},
        },
        _VISION_PATHS,
        _vision(151655, 151656),
        paths_by_convention={"sglang": _NEIGHBOUR_PATHS, "vllm": _RATE_PATHS},
        defaults_by_convention={
            "sglang": {"vision_start_token_id": 151652},
            "vllm": {"tokens_per_second": 1.0},
        },
    ),
    "qwen2_5_vl": Family(
        {
            "transformers": {**_TRANSFORMERS, **_BY_IDS, **_SECONDS_TRANSFORMERS},
            "sglang": {**_SGLANG, **_BY_NEIGHBOUR, **_SECONDS_SGLANG},
            "vllm": {**_VLLM, **_BY_IDS, **_SECONDS_VLLM},
        },
        {**_VISION_PATHS, **_RATE_PATHS},
        {**_vision(151655, 151656), "tokens_per_second": 4},
        paths_by_convention={"sglang": _NEIGHBOUR_PATHS},
        defaults_by_convention={"sglang": {"vision_start_token_id": 151652}},
    ),
    "paddleocr_vl": Family(
        {
            "transformers": {**_TRANSFORMERS, **_BY_IDS},
            "sglang": {**_SGLANG, **_BY_NEIGHBOUR, **_SECONDS_SGLANG},
            "vllm": {**_VLLM, **_BY_IDS, **_SECONDS_VLLM},
        },
        _VISION_PATHS,
        _vision(100295, 100296),
        paths_by_convention={
            "sglang": {**_NEIGHBOUR_PATHS, **_RATE_PATHS},
            "vllm": _RATE_PATHS,
        },
        defaults_by_convention={
            "sglang": {"vision_start_token_id": 101305},
            "vllm": {"tokens_per_second": 1.0},
        },
    ),
    "qwen3_vl": _frames_between_timestamps(151655, 151656, 151652),
    "qwen3_vl_moe": _frames_between_timestamps(151655, 151656, 151652),
    "qwen3_5": _frames_between_timestamps(248056, 248057, 248053),
    "qwen3_5_moe": _frames_between_timestamps(248056, 248057, 248053),
    "qwen4_exp": _frames_between_timestamps(248056, 248057, 248053),
    "cosmos3_omni": _frames_between_timestamps(151655, 151656, 151652),
    "cosmos3_edge": _frames_between_timestamps(19, 18, 20),
    # vLLM's takes no videos.
    "cohere_compass": Family(
        {
            "transformers": {**_TRANSFORMERS, **_FRAMES_BY_IDS},
            "vllm": {**_VLLM, **_BY_IDS},
        },
        {
            "image_token_id": "image_token_id",
            "spatial_merge_size": "vision_config.spatial_merge_size",
        },
        {"image_token_id": 255031, "spatial_merge_size": 2},
        paths_by_convention={"transformers": {"video_token_id": "video_token_id"}},
        defaults_by_convention={"transformers": {"video_token_id": 255032}},
    ),
    "ernie4_5_vl_moe": Family(
        {
            "transformers": {**_TRANSFORMERS, **_BY_IDS},
            "sglang": {**_SGLANG, **_BY_MARKERS},
            "vllm": {**_VLLM, **_BY_MARKERS, "multi_frame_images": True},
        },
        {
            "spatial_merge_size": "vision_config.spatial_merge_size",
            "temporal_merge_size": "vision_config.temporal_merge_size",
        },
        {"image_token_id": 100295, "spatial_merge_size": 2, "temporal_merge_size": 2},
        paths_by_convention={
            "transformers": {
                "image_token_id": "image_token_id",
                "video_token_id": "video_token_id",
            },
            "sglang": _ERNIE_ORIGINAL_PATHS,
            "vllm": _ERNIE_ORIGINAL_PATHS,
        },
        defaults_by_convention={
            "transformers": {"video_token_id": 103367},
            "sglang": {"video_start_token_id": 101306, "video_end_token_id": 101307},
            "vllm": {"video_start_token_id": 101306, "video_end_token_id": 101307},
        },
    ),
    # Frame after frame, with or without text between them.
    "keye": _only_vllm(multi_frame_images=True),
    "keye_vl1_5": _only_vllm(multi_frame_images=True),
    "openpangu_vl": _only_vllm(multi_frame_images=False),
    "qwen2_5_omni": _QWEN2_5_OMNI,
    "qwen2_5_omni_thinker": _QWEN2_5_OMNI,
    # Alone, as the model that speaks; its configuration is flat.
    "qwen2_5_omni_talker": replace(
        _QWEN2_5_OMNI,
        rules={"transformers": _QWEN2_5_OMNI.rules["transformers"]},
        paths={**_OMNI_PATHS, "spatial_merge_size": "spatial_merge_size"},
    ),
    "qwen3_omni_moe": _QWEN3_OMNI_MOE,
    "qwen3_omni_moe_thinker": _QWEN3_OMNI_MOE,
    # Positions by a rule of their own.
    "hunyuan_vl": Family(
        {"transformers": {**_TRANSFORMERS, **_BY_IDS}},
        {
            "image_token_id": "image_token_id",
            "spatial_merge_size": "vision_config.spatial_merge_size",
        },
        {"image_token_id": 120120, "spatial_merge_size": 2},
        own_rule=Hunyuan.of_section,
        own_paths={"mrope_section": _HUNYUAN_SECTION_PATHS},
    ),
    "glm_image": Family(
        {
            "transformers": {**_TRANSFORMERS, **_GLM_IMAGE, "padding_value": 1},
            "sglang": {
                **_SGLANG,
                **_GLM_IMAGE,
                "span_rule": "hw",
                "multi_frame_images": False,
                "position_dtype": "int64",
            },
        },
        {"image_token_id": "image_token_id"},
        {"image_token_id": 167855},
        own_rule=GlmImage,
        own_paths={
            "image_start_token_id": "image_start_token_id",
            "image_end_token_id": "image_end_token_id",
        },
        own_defaults={"image_start_token_id": 16384, "image_end_token_id": 16385},
    ),
    "isaac": Family(
        {"vllm": {**_VLLM, **_BY_IDS}},
        {
            "image_token_id": "image_token_id",
            "spatial_merge_size": "vision_config.pixel_shuffle_scale_factor",
        },
        own_rule=Isaac,
    ),
    "bailing_moe_v3_vl": Family(
        {
            "sglang": {**_SGLANG, "marker_rule": "none"},
            "vllm": {**_VLLM, **_BY_IDS},
        },
        {"spatial_merge_size": "vision_config.spatial_merge_size"},
        {"spatial_merge_size": 2},
        paths_by_convention={
            "sglang": {
                "image_token_id": _in_text_config("image_patch_token"),
                "video_token_id": _in_text_config("video_patch_token"),
                "vision_start_token_id": _in_text_config("image_start_token"),
                "video_start_token_id": _in_text_config("video_start_token"),
                "separate_frames": _in_text_config("use_interleaved_frame_timestamp"),
            },
            "vllm": {"image_token_id": "image_token_id"},
        },
        defaults_by_convention={
            "sglang": {"separate_frames": False},
            "vllm": {"image_token_id": 151655},
        },
        own_rule=Bailing.of_context,
        shared_in=("vllm",),
        own_paths={
            "max_position_embeddings": _in_text_config("max_position_embeddings"),
            "rope_type": (
                *_in_text_config("rope_parameters.rope_type"),
                *_in_text_config("rope_parameters.type"),
            ),
            "factor": _in_text_config("rope_parameters.factor"),
            "original_max_position_embeddings": _in_text_config(
                "rope_parameters.original_max_position_embeddings"
            ),
        },
        own_defaults={
            "max_position_embeddings": None,
            "rope_type": "default",
            "factor": 1.0,
            "original_max_position_embeddings": 0,
        },
    ),
    "minicpmv4_7": _canvas(),
    # What looks like M-RoPE in these upstreams, and counts tokens.
    "qwen3_asr": _plain("sglang", "vllm"),
    "minicpmv4_6": _plain("vllm"),
}

# What the configurations of checkpoints call a family that vLLM files under another name.
_CHECKPOINT_NAMES = {"Keye": "keye", "KeyeVL1_5": "keye_vl1_5"}

# Models whose code has, or inherits, parts of M-RoPE, and does not use them.
NOT_MROPE = ("exaone4_5", "glm5_next", "lfm3_vl", "minicpmv4_6", "qwen3_asr", "video_llama_3")


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
                    f"{model_type!r} has no default {name}: pass own_rule=..., of vecrope.rules, "
                    "or use from_config"
                )
        values["own_rule"] = own_rule(**family.own_defaults)
    return values


def read_config(config: Any, convention: str) -> tuple[str, dict[str, Any]]:
    """Return the model type of a configuration and the fields of its spec.

    Raises:
        ValueError: if there is no such family or upstream, or a field is missing.
    """
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
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is not None and convention in family.rules:
        return family
    if model_type in NOT_MROPE:
        raise ValueError(
            f"{model_type!r} has no M-RoPE under convention {convention!r}: its positions are the "
            "plain index of each token, which the model makes itself"
        )
    if family is None:
        known = ", ".join(map(repr, FAMILIES))
        raise ValueError(f"model_type must be one of {known}, got {model_type!r}")
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
