"""Qwen3-Omni's functions, as those of the other families in `bench.upstreams`."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

import torch

from bench.prompts import VIDEO, Workload
from bench.wheels import Wheel, load
from vecrope import Convention, MRopeSpec
from vecrope.families.rules import OmniRule
from vecrope.testing import Prompt

MODEL_TYPE = "qwen3_omni_moe"
_LENGTHS = "_get_feat_extract_output_lengths"
_VLLM_FOLDER = "vllm/model_executor/models"
_VLLM_METHODS = (
    "get_mrope_input_positions",
    "iter_mm_features",
    "_get_audio_for_video_mapping",
    "_compute_audio_token_count",
    "_compute_interleaved_positions",
)


def prepare_loop(workload: Workload, convention: Convention) -> Callable[[], Any]:
    """Return the loop reference of the omni families, from tensors to tensors."""
    prompt = Prompt(
        input_ids=workload.input_ids,
        attention_mask=None,
        mm_token_type_ids=None,
        image_grid_thw=workload.image_grid_thw,
        video_grid_thw=workload.video_grid_thw,
        audio_seqlens=workload.audio_seqlens,
        second_per_grids=workload.second_per_grid_ts,
        use_audio_in_video=False,
        spec=MRopeSpec.for_model(MODEL_TYPE, convention=convention),
    )
    return prompt.expected


def prepare_transformers(workload: Workload) -> Callable[[], Any]:
    """Return transformers' function, which needs a mask where nothing is masked."""
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe

    thinker = modeling_qwen3_omni_moe.Qwen3OmniMoeThinkerForConditionalGeneration
    config = _config()
    model = SimpleNamespace(
        config=config, spatial_merge_size=config.vision_config.spatial_merge_size
    )
    for name in ("get_llm_pos_ids_for_vision", "get_chunked_index"):
        setattr(model, name, MethodType(getattr(thinker, name), model))
    arguments = {
        "image_grid_thw": workload.image_grid_thw,
        "video_grid_thw": workload.video_grid_thw,
        "attention_mask": torch.ones_like(workload.input_ids),
        "use_audio_in_video": False,
        "audio_seqlens": workload.audio_seqlens,
        "second_per_grids": workload.second_per_grid_ts,
    }
    return lambda: thinker.get_rope_index(model, workload.input_ids, **arguments)


def load_sglang(wheel: Wheel, member: str) -> Callable[[Workload], Callable[[], Any]]:
    """Return what prepares SGLang's function."""
    names = ("get_rope_index_qwen3_omni", _LENGTHS, "_get_llm_pos_ids_for_vision")
    function = load(wheel, member, *names, torch=torch)[names[0]]

    def prepare(workload: Workload) -> Callable[[], Any]:
        config = _config()
        return lambda: function(
            config.vision_config.spatial_merge_size,
            config.image_token_id,
            config.video_token_id,
            config.vision_start_token_id,
            input_ids=workload.input_ids,
            image_grid_thw=workload.image_grid_thw,
            video_grid_thw=workload.video_grid_thw,
            second_per_grid_ts=workload.second_per_grid_ts,
            audio_token_id=config.audio_token_id,
            audio_start_token_id=config.audio_start_token_id,
            position_id_per_seconds=config.position_id_per_seconds,
            use_audio_in_video=False,
            audio_seqlens=workload.audio_seqlens,
        )

    return prepare


def load_vllm(wheel: Wheel) -> Callable[[Workload], Callable[[], Any]]:
    """Return what prepares vLLM's function."""
    import numpy as np

    owner = "Qwen3OmniMoeThinkerForConditionalGeneration"
    member = f"{_VLLM_FOLDER}/qwen3_omni_moe_thinker.py"
    older = f"{_VLLM_FOLDER}/qwen2_5_omni_thinker.py"
    namespace = {"np": np, "torch": torch}
    namespace |= load(wheel, older, "_get_feature_tensor", torch=torch)
    namespace |= load(wheel, member, _LENGTHS, torch=torch)
    methods = load(wheel, member, *(f"{owner}.{name}" for name in _VLLM_METHODS), **namespace)

    def prepare(workload: Workload) -> Callable[[], Any]:
        model = SimpleNamespace(config=_config())
        for name, method in methods.items():
            setattr(model, name, MethodType(method, model))
        tokens, features = workload.input_ids[0].tolist(), _vllm_features(workload)
        return lambda: model.get_mrope_input_positions(tokens, features)

    return prepare


def configuration(spec: MRopeSpec) -> SimpleNamespace:
    """Return what the functions read of a thinker's configuration."""
    rule = spec.own_rule
    assert isinstance(rule, OmniRule)
    return SimpleNamespace(
        image_token_id=spec.image_token_id,
        video_token_id=spec.video_token_id,
        audio_token_id=rule.audio_token_id,
        vision_start_token_id=spec.vision_start_token_id,
        audio_start_token_id=rule.audio_start_token_id,
        position_id_per_seconds=spec.tokens_per_second,
        seconds_per_chunk=rule.seconds_per_chunk,
        audio_config=SimpleNamespace(n_window=rule.n_window),
        vision_config=SimpleNamespace(
            spatial_merge_size=spec.spatial_merge_size, tokens_per_second=spec.tokens_per_second
        ),
    )


def _config() -> SimpleNamespace:
    return configuration(MRopeSpec.for_model(MODEL_TYPE, convention="transformers"))


def _vllm_features(workload: Workload) -> list[Any]:
    """Describe a row's image, video and audio, by where they begin and what they hold."""
    assert workload.image_grid_thw is not None
    assert workload.video_grid_thw is not None
    assert workload.audio_seqlens is not None
    assert workload.second_per_grid_ts is not None
    features = []
    for start, _, kind in workload.runs:
        if kind == VIDEO:
            data = {
                "video_grid_thw": workload.video_grid_thw[0],
                "use_audio_in_video": torch.tensor(False),
                "second_per_grid_ts": workload.second_per_grid_ts[0],
            }
            features.append(_feature("video", start, data))
        else:
            features.append(
                _feature("image", start, {"image_grid_thw": workload.image_grid_thw[0]})
            )
    start = int((workload.input_ids[0] == _config().audio_token_id).nonzero()[0])
    features.append(_feature("audio", start, {"audio_feature_lengths": workload.audio_seqlens[0]}))
    return features


def _feature(modality: str, offset: int, values: dict[str, Any]) -> SimpleNamespace:
    data = {name: SimpleNamespace(data=value) for name, value in values.items()}
    position = SimpleNamespace(offset=offset)
    return SimpleNamespace(modality=modality, mm_position=position, data=data)
