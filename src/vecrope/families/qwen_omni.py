"""Qwen's omni families: images, videos, audio, and videos with their sound."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from vecrope.families.conventions import (
    BY_IDS,
    SECONDS_VLLM,
    SGLANG,
    TRANSFORMERS,
    VLLM,
    vision_defaults,
)
from vecrope.families.family import Family, Path
from vecrope.families.rules import OmniRule, OwnRule


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
    **vision_defaults(151655, 151656),
    "vision_start_token_id": 151652,
    "tokens_per_second": 25,
}
_OMNI_OWN_PATHS: dict[str, Path] = {
    "audio_token_id": _thinker("audio_token_id", "audio_token_index"),
    "audio_start_token_id": _thinker("audio_start_token_id"),
}
_OMNI_OWN_DEFAULTS = {"audio_token_id": 151646, "audio_start_token_id": 151647}
_OMNI_TRANSFORMERS = {
    **TRANSFORMERS,
    **BY_IDS,
    "span_rule": "thw",
    "video_time": "seconds",
    "time_order": "seconds",
    "time_dtype": "float32",
}
_OMNI_VLLM = {**VLLM, **BY_IDS, **SECONDS_VLLM, "multi_frame_images": True}

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
        "sglang": {**_OMNI_TRANSFORMERS, **SGLANG, "position_dtype": "float32"},
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


FAMILIES: dict[str, Family] = {
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
}
