"""vLLM's models whose family has a rule of its own: what their features say, as arguments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vecrope.forms.eager import positions_of_groups
from vecrope.rope_index import get_rope_index
from vecrope.spec import MRopeSpec


def answer_omni(
    model_type: str, model: Any, input_tokens: list[int], mm_features: list[Any]
) -> tuple[Tensor, int]:
    """Answer for the thinker of an omni model.

    Audio on its own is numbered as text. A video with its sound is read off the tokens, where all
    videos of the prompt have theirs.
    """
    items = list(model.iter_mm_features(mm_features))
    if any(data.get("use_audio_in_video") for _, _, data in items):
        return _with_sound(model_type, model, input_tokens, mm_features)
    groups = [
        (offset, data["grid_t"], data["grid_h"], data["grid_w"], float(data["t_factor"]))
        for offset, modality, data in items
        if modality != "audio"
    ]
    return positions_of_groups(len(input_tokens), groups)


def _with_sound(
    model_type: str, model: Any, input_tokens: list[int], mm_features: list[Any]
) -> tuple[Tensor, int]:
    config = SimpleNamespace(model_type=model_type, thinker_config=model.config)
    spec = MRopeSpec.from_config(config, convention="vllm")
    features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
    images, videos, audios = (
        [feature for feature in features if feature.modality == modality]
        for modality in ("image", "video", "audio")
    )
    sounds = [bool(_value(video, "use_audio_in_video", False)) for video in videos]
    if not all(sounds) or len(audios) != len(videos):
        raise ValueError(
            f"all videos must have their sound and no other audio be there, got {len(videos)} "
            f"videos, {sum(sounds)} of them with sound, and {len(audios)} audios"
        )
    default = 1.0 if spec.default_seconds is None else spec.default_seconds
    return _answer(
        input_tokens,
        spec,
        image_grid_thw=_grids(images, "image_grid_thw"),
        video_grid_thw=_grids(videos, "video_grid_thw"),
        second_per_grid_ts=[
            float(_value(video, "second_per_grid_ts", default)) for video in videos
        ],
        audio_seqlens=torch.tensor(
            [int(_value(audio, "audio_feature_lengths")) for audio in audios]
        ),
        use_audio_in_video=True,
    )


def answer_minicpmv4_7(
    model: Any, input_tokens: list[int], mm_features: list[Any]
) -> tuple[Tensor, int]:
    """Answer for MiniCPM-V 4.7, by the markers of its pictures."""
    if not getattr(model, "_uses_canvas_mrope", False) or not mm_features:
        return torch.arange(len(input_tokens)).repeat(3, 1), 0
    spec = MRopeSpec.from_config(model.config, convention="vllm")
    features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
    images, videos = (
        [
            feature.data[key].data.reshape(-1, 2)
            for feature in features
            if feature.data is not None and feature.data.get(key) is not None
        ]
        for key in ("tgt_sizes", "video_tgt_sizes")
    )
    return _answer(
        input_tokens,
        spec,
        target_sizes=torch.cat(images) if images else None,
        target_sizes_videos=torch.cat(videos) if videos else None,
    )


def _answer(input_tokens: list[int], spec: MRopeSpec, **arguments: Any) -> tuple[Tensor, int]:
    ids = torch.tensor([input_tokens], dtype=torch.int64)
    position_ids, rope_deltas = get_rope_index(ids, spec, **arguments)
    return position_ids[:, 0], int(rope_deltas)


def _grids(features: list[Any], key: str) -> Tensor:
    grids = [feature.data[key].data.tolist() for feature in features]
    return torch.tensor(grids, dtype=torch.int64).view(-1, 3)


def _value(feature: Any, key: str, default: Any = None) -> Any:
    """Return the number of a feature; the default where it has none."""
    field = feature.data.get(key)
    return default if field is None else field.data
