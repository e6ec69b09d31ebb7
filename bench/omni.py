"""The functions of the omni families, as those of the others in `bench.upstreams`."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

import torch

from bench.prompts import Workload
from bench.wheels import Wheel, load
from vecrope import Convention, MRopeSpec
from vecrope.families.rules import OmniRule
from vecrope.testing import Prompt

MODEL_TYPE = "qwen3_omni_moe"
# Of transformers; of the others' wheels the first is taken.
MODEL_TYPES = (MODEL_TYPE, "qwen2_5_omni")
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
    return _prompt(workload, convention).expected


def prepare_transformers(workload: Workload) -> Callable[[], Any]:
    """Return transformers' function, which needs a mask where nothing is masked."""
    if workload.model_type == MODEL_TYPE:
        from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
            Qwen3OmniMoeThinkerForConditionalGeneration as Thinker,
        )
    else:
        from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
            Qwen2_5OmniThinkerForConditionalGeneration as Thinker,
        )
    thinker: Any = Thinker
    config = _config(workload)
    model = SimpleNamespace(
        config=config, spatial_merge_size=config.vision_config.spatial_merge_size
    )
    for name in ("get_llm_pos_ids_for_vision", "get_chunked_index"):
        setattr(model, name, MethodType(getattr(thinker, name), model))
    mask = workload.attention_mask
    arguments = {
        "image_grid_thw": workload.image_grid_thw,
        "video_grid_thw": workload.video_grid_thw,
        "attention_mask": torch.ones_like(workload.input_ids) if mask is None else mask,
        "use_audio_in_video": workload.use_audio_in_video,
        "audio_seqlens": workload.audio_seqlens,
        "second_per_grids": workload.second_per_grid_ts,
    }
    return lambda: thinker.get_rope_index(model, workload.input_ids, **arguments)


def load_sglang(wheel: Wheel, member: str) -> Callable[[Workload], Callable[[], Any]]:
    """Return what prepares SGLang's function."""
    names = ("get_rope_index_qwen3_omni", _LENGTHS, "_get_llm_pos_ids_for_vision")
    return prepare_sglang(load(wheel, member, *names, torch=torch)[names[0]])


def prepare_sglang(function: Any) -> Callable[[Workload], Callable[[], Any]]:
    """Return what prepares SGLang's function, or one with its arguments."""

    def prepare(workload: Workload) -> Callable[[], Any]:
        config = _config(workload)
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
            use_audio_in_video=workload.use_audio_in_video,
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
        model = SimpleNamespace(config=_config(workload))
        for name, method in methods.items():
            setattr(model, name, MethodType(method, model))
        tokens = workload.input_ids[0].tolist()
        features = vllm_features(_prompt(workload, "vllm"))
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


def _config(workload: Workload) -> SimpleNamespace:
    return configuration(MRopeSpec.for_model(workload.model_type, convention="transformers"))


def _prompt(workload: Workload, convention: Convention) -> Prompt:
    return Prompt(
        input_ids=workload.input_ids,
        attention_mask=workload.attention_mask,
        mm_token_type_ids=None,
        image_grid_thw=workload.image_grid_thw,
        video_grid_thw=workload.video_grid_thw,
        audio_seqlens=workload.audio_seqlens,
        second_per_grids=workload.second_per_grid_ts,
        use_audio_in_video=workload.use_audio_in_video,
        spec=MRopeSpec.for_model(workload.model_type, convention=convention),
    )


def vllm_features(prompt: Prompt) -> list[Any]:
    """Return the media of a row as features: where their placeholders begin, and what they hold.

    A video with sound stands where its audio starts, and so does its audio.
    """
    symbols = prompt.symbols[0]
    images, videos, audios = (
        iter(() if values is None else values)
        for values in (prompt.image_grid_thw, prompt.video_grid_thw, prompt.audio_seqlens)
    )
    seconds = iter(() if prompt.second_per_grids is None else prompt.second_per_grids)
    features = []

    def add(modality: str, offset: int, **values: Any) -> None:
        data = {name: SimpleNamespace(data=torch.as_tensor(v)) for name, v in values.items()}
        position = SimpleNamespace(offset=offset)
        features.append(SimpleNamespace(modality=modality, mm_position=position, data=data))

    for at, symbol in enumerate(symbols):
        pair = symbols[at : at + 2]
        if pair == "<I":
            add("image", at + 1, image_grid_thw=next(images))
        if pair in ("<V", "<("):
            given = {} if prompt.second_per_grids is None else {"second_per_grid_ts": next(seconds)}
            sound = pair == "<("
            add("video", at + 1, video_grid_thw=next(videos), use_audio_in_video=sound, **given)
        if symbol == "(":
            in_video = symbols[at - 1 : at] == "<"
            add("audio", at if in_video else at + 1, audio_feature_lengths=next(audios))
    return features
