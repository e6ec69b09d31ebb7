"""What the test files of the omni families share: specs, calls, and the upstreams as oracles."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch

from bench.omni import configuration, vllm_features
from bench.wheels import Wheel, load
from vecrope import MRopeSpec, get_rope_index

OMNI = [
    ("qwen2_5_omni", "transformers"),
    ("qwen2_5_omni", "vllm"),
    ("qwen3_omni_moe", "transformers"),
    ("qwen3_omni_moe", "sglang"),
    ("qwen3_omni_moe", "vllm"),
]
each_omni = pytest.mark.parametrize(("model_type", "convention"), OMNI)
# Positions a second: the default of both configurations, that of Qwen3-Omni's processor, and few.
RATES = (25, 13.0, 2)
each_rate = pytest.mark.parametrize("rate", RATES)


def spec_of(model_type, convention, rate=25, **rule):
    spec = MRopeSpec.for_model(model_type, convention=convention, tokens_per_second=rate)
    return replace(spec, own_rule=replace(spec.own_rule, **rule))


def rope_index(prompt, function=get_rope_index, **changes):
    arguments = {**prompt.arguments(), **changes}
    return function(arguments.pop("input_ids"), prompt.spec, **arguments)


def kept(prompt):
    """Return (B, T) bool: the unmasked tokens."""
    if prompt.attention_mask is None:
        return torch.ones_like(prompt.input_ids, dtype=torch.bool)
    return prompt.attention_mask.bool()


def without_zeros(prompt):
    """Return the prompt without the rows that stand for nothing, which no upstream knows."""
    changes = {}
    for name in ("image_grid_thw", "video_grid_thw", "audio_seqlens"):
        values = getattr(prompt, name)
        if values is None:
            continue
        real = values != 0 if values.dim() == 1 else (values != 0).any(1)
        changes[name] = values[real]
        if name == "video_grid_thw":
            changes["second_per_grids"] = prompt.second_per_grids[real]
    return replace(prompt, **changes)


def rows_of(prompt):
    """Yield each row as a prompt of its own, without masked tokens and with the media it uses."""
    prompt = without_zeros(prompt)
    media = {
        name: iter([] if values is None else values)
        for name, values in (
            ("image_grid_thw", prompt.image_grid_thw),
            ("video_grid_thw", prompt.video_grid_thw),
            ("second_per_grids", prompt.second_per_grids),
            ("audio_seqlens", prompt.audio_seqlens),
        )
    }
    for ids, keep, line in zip(prompt.input_ids, kept(prompt), prompt.symbols, strict=True):
        symbols = "".join(s for s, k in zip(line, keep.tolist(), strict=True) if k)
        counts = {
            "image_grid_thw": symbols.count("<I"),
            "video_grid_thw": symbols.count("<V") + symbols.count("<("),
            "audio_seqlens": symbols.count("("),
        }
        counts["second_per_grids"] = counts["video_grid_thw"]
        changes = {}
        for name, count in counts.items():
            if getattr(prompt, name) is not None:
                rows = [next(media[name]) for _ in range(count)]
                empty = getattr(prompt, name)[:0]
                changes[name] = torch.stack(rows) if rows else empty
        yield replace(prompt, input_ids=ids[keep].unsqueeze(0), attention_mask=None, **changes)


# transformers


@cache
def transformers_class(model_type):
    """Return the class that both the thinker and its model inherit the function from."""
    if model_type == "qwen2_5_omni":
        from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
            Qwen2_5OmniThinkerForConditionalGeneration as Thinker,
        )
    else:
        from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
            Qwen3OmniMoeThinkerForConditionalGeneration as Thinker,
        )
    return Thinker


def transformers_function(model_type, config):
    """Return the function of a thinker that has this configuration and nothing else."""
    thinker = transformers_class(model_type)
    model = SimpleNamespace(
        config=config, spatial_merge_size=config.vision_config.spatial_merge_size
    )
    for name in ("get_llm_pos_ids_for_vision", "get_chunked_index"):
        setattr(model, name, MethodType(getattr(thinker, name), model))
    return MethodType(thinker.get_rope_index, model)


def transformers_rope_index(prompt):
    """Answer as transformers does; it needs a mask wherever it does not look at the ids."""
    function = transformers_function(prompt.spec.model_type, configuration(prompt.spec))
    mask = kept(prompt).long() if prompt.attention_mask is None else prompt.attention_mask
    return function(**{**without_zeros(prompt).arguments(), "attention_mask": mask})


# SGLang and vLLM, from wheels

SGLANG_WHEEL = os.environ.get("VECROPE_SGLANG_WHEEL")
VLLM_WHEEL = os.environ.get("VECROPE_VLLM_WHEEL")


def needs_sglang(test):
    reason = "VECROPE_SGLANG_WHEEL does not name a wheel of SGLang"
    return pytest.mark.wheels(pytest.mark.skipif(SGLANG_WHEEL is None, reason=reason)(test))


def needs_vllm(test):
    reason = "VECROPE_VLLM_WHEEL does not name a wheel of vLLM"
    return pytest.mark.wheels(pytest.mark.skipif(VLLM_WHEEL is None, reason=reason)(test))


@cache
def _sglang_function():
    names = ("get_rope_index_qwen3_omni", "_get_feat_extract_output_lengths")
    names += ("_get_llm_pos_ids_for_vision",)
    member = "sglang/srt/layers/rotary_embedding/mrope_rope_index.py"
    return load(Wheel(Path(SGLANG_WHEEL), "sglang"), member, *names, torch=torch)[names[0]]


def sglang_rope_index(prompt):
    """Answer as SGLang does, which knows no mask."""
    spec = prompt.spec
    arguments = without_zeros(prompt).arguments()
    arguments["second_per_grid_ts"] = arguments.pop("second_per_grids")
    del arguments["attention_mask"]
    return _sglang_function()(
        spec.spatial_merge_size,
        spec.image_token_id,
        spec.video_token_id,
        spec.vision_start_token_id,
        audio_token_id=spec.own_rule.audio_token_id,
        audio_start_token_id=spec.own_rule.audio_start_token_id,
        position_id_per_seconds=spec.tokens_per_second,
        **arguments,
    )


@cache
def _vllm_methods(model_type):
    wheel = Wheel(Path(VLLM_WHEEL), "vllm")
    folder = "vllm/model_executor/models"
    helper = "_get_feature_tensor"
    older = f"{folder}/qwen2_5_omni_thinker.py"
    namespace = {"np": np, "torch": torch, **load(wheel, older, helper, torch=torch)}
    owner, member = "Qwen2_5OmniThinkerForConditionalGeneration", older
    if model_type == "qwen3_omni_moe":
        owner = "Qwen3OmniMoeThinkerForConditionalGeneration"
        member = f"{folder}/qwen3_omni_moe_thinker.py"
        lengths = "_get_feat_extract_output_lengths"
        namespace |= load(wheel, member, lengths, torch=torch)
    names = (
        "get_mrope_input_positions",
        "iter_mm_features",
        "_get_audio_for_video_mapping",
        "_compute_audio_token_count",
        "_compute_interleaved_positions",
    )
    return load(wheel, member, *(f"{owner}.{name}" for name in names), **namespace)


def vllm_model(prompt):
    """Return an object that has what the methods of vLLM's model read, and those methods."""
    model = SimpleNamespace(config=configuration(prompt.spec))
    for name, method in _vllm_methods(prompt.spec.model_type).items():
        setattr(model, name, MethodType(method, model))
    return model


def vllm_rope_index(prompt):
    """Answer a prompt of one row without padding as vLLM does."""
    positions, delta = vllm_model(prompt).get_mrope_input_positions(
        prompt.input_ids[0].tolist(), vllm_features(prompt)
    )
    return positions.unsqueeze(1), torch.tensor([[delta]])
