"""The functions that vecrope replaces, as providers: transformers', SGLang's and vLLM's.

Each is the upstream's own code, called with stand-ins for the model and the configuration that it
reads its ids from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench import omni, own, steps
from bench.answers import Answer, tensor_arguments, text_only_answer
from bench.prompts import MODEL_TYPE, VIDEO, Workload
from bench.provider import Provider
from bench.wheels import Wheel, load
from vecrope import MRopeSpec

_GLM4V = "get_rope_index_glm4v"
# Where SGLang has kept that function, the latest place first.
_SGLANG_MODULE = "sglang/srt/layers/rotary_embedding/mrope_rope_index.py"
_SGLANG_PLACES = {
    _SGLANG_MODULE: _GLM4V,
    "sglang/srt/layers/rotary_embedding.py": f"MRotaryEmbedding.{_GLM4V}",
}
_SGLANG_FUNCTIONS = {
    "qwen2_vl": "get_rope_index",
    "qwen2_5_vl": "get_rope_index",
    "qwen3_vl": "get_rope_index",
    "ernie4_5_vl_moe": "get_rope_index_ernie45",
}
# These cannot take tensors on a GPU; SGLang calls them before it moves the prompt there.
_SGLANG_ON_THE_HOST = (
    *(name for name, function in _SGLANG_FUNCTIONS.items() if function == "get_rope_index"),
    *(omni.MODEL_TYPE, "minicpmv4_7"),
)
_SGLANG_STEPS = (
    "_expand_mrope_from_input",
    "_compute_mrope_positions_extend",
    "_compute_mrope_positions_decode",
)
TRANSFORMERS_CLASSES = {
    "glm4v": "Glm4vModel",
    "qwen2_vl": "Qwen2VLModel",
    "qwen2_5_vl": "Qwen2_5_VLModel",
    "qwen3_vl": "Qwen3VLModel",
    "ernie4_5_vl_moe": "Ernie4_5_VLMoeModel",
}
_QWEN_VISION_END_ID = 151653
_VLLM_CLASSES = {
    "glm4v": ("glm4_1v", "Glm4vForConditionalGeneration"),
    "qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
    "ernie4_5_vl_moe": ("ernie45_vl", "Ernie4_5_VLMoeForConditionalGeneration"),
}


def transformers_provider() -> Provider:
    """Return `get_rope_index` of the family's model in the installed transformers."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        import transformers

        if workload.model_type in omni.MODEL_TYPES:
            return omni.prepare_transformers(workload)
        if workload.model_type in own.FAMILIES:
            return own.prepare_transformers(workload)
        model_class = getattr(transformers, TRANSFORMERS_CLASSES[workload.model_type])
        model = SimpleNamespace(config=hf_config(workload.model_type))
        model.get_vision_position_ids = MethodType(model_class.get_vision_position_ids, model)
        arguments = tensor_arguments(workload)
        arguments["mm_token_type_ids"] = workload.mm_token_type_ids
        return lambda: model_class.get_rope_index(model, workload.input_ids, **arguments)

    try:
        version = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        version = ""  # each of its points will say so
    families = (*TRANSFORMERS_CLASSES, *omni.MODEL_TYPES, *own.TRANSFORMERS_FAMILIES)
    return Provider("transformers", version, "transformers", prepare, families=families)


def sglang_provider(path: Path) -> Provider:
    """Return the functions of an SGLang wheel: those that number prompts, and its step's.

    A wheel as of 0.5.8 has that of GLM-4V in another place, which is then all that is taken of it.
    """
    wheel, function = _load_glm4v(path)
    name = f"sglang-{wheel.version}"
    if not wheel.has(_SGLANG_MODULE):

        def prepare_glm4v(workload: Workload) -> Callable[[], Answer]:
            return _call_glm4v(function, workload)

        return Provider(name, wheel.version, "sglang", prepare_glm4v, families=(MODEL_TYPE,))

    names = set(_SGLANG_FUNCTIONS.values())
    functions = load(wheel, _SGLANG_MODULE, *sorted(names), torch=torch, itertools=itertools)
    step_functions = load(
        wheel,
        "sglang/srt/model_executor/forward_batch_info.py",
        *(f"ForwardBatch.{step}" for step in _SGLANG_STEPS),
        torch=torch,
        get_exec=_sglang_exec,
    )

    prepare_omni = omni.load_sglang(wheel, _SGLANG_MODULE)
    prepare_own = own.load_sglang(wheel)

    def prepare(workload: Workload) -> Callable[[], Answer]:
        if workload.step is not None:
            return steps.prepare_sglang(step_functions, workload)
        if workload.model_type == omni.MODEL_TYPE:
            return prepare_omni(workload)
        if workload.model_type in own.FAMILIES:
            return prepare_own(workload)
        if workload.model_type == MODEL_TYPE:
            return _call_glm4v(function, workload)
        chosen = functions[_SGLANG_FUNCTIONS[workload.model_type]]
        arguments = tensor_arguments(workload)
        del arguments["attention_mask"]
        if workload.model_type == "ernie4_5_vl_moe":
            config = hf_config(workload.model_type)
            return lambda: chosen(workload.input_ids, config, **arguments)
        spec = _spec(workload.model_type)
        return lambda: chosen(
            spec.spatial_merge_size,
            spec.image_token_id,
            spec.video_token_id,
            spec.vision_start_token_id,
            spec.model_type,
            spec.tokens_per_second,
            input_ids=workload.input_ids,
            **arguments,
        )

    return Provider(
        name,
        wheel.version,
        "sglang",
        prepare,
        families=(MODEL_TYPE, *_SGLANG_FUNCTIONS, omni.MODEL_TYPE, *own.SGLANG_FAMILIES),
        host_families=_SGLANG_ON_THE_HOST,
        one_row_families=own.SGLANG_FAMILIES,
        steps=True,
        whole_steps=True,
        held_bytes=steps.sglang_bytes,
    )


def sglang_host_provider(path: Path) -> Provider:
    """Return the same as SGLang runs them: over ids on the host, and one copy of the answer."""
    on_device = sglang_provider(path)

    def prepare(workload: Workload) -> Callable[[], Answer]:
        device = workload.input_ids.device
        call = on_device.prepare(workload.to("cpu"))

        def call_and_copy() -> Answer:
            position_ids, rope_deltas = call()
            return position_ids.to(device), rope_deltas.to(device)

        return call_and_copy

    name = on_device.name.replace("sglang-", "sglang-host-")
    return replace(
        on_device, name=name, prepare=prepare, gpu_only=True, host_families=(), steps=False
    )


def text_only_provider(path: Path) -> Provider:
    """Return GLM-4V's function without grids: it then answers as if all tokens were text."""
    wheel, function = _load_glm4v(path)

    def prepare(workload: Workload) -> Callable[[], Answer]:
        config = hf_config(MODEL_TYPE)
        return lambda: function(workload.input_ids, config, None, None, workload.attention_mask)

    return Provider(
        "text-only", wheel.version, "sglang", prepare, oracle=text_only_answer, only=("seed",)
    )


def vllm_provider(path: Path) -> Provider:
    """Return the `get_mrope_input_positions` of a vLLM wheel's models."""
    wheel = Wheel(path, "vllm")
    placeholder_range = load(
        wheel,
        "vllm/multimodal/inputs.py",
        "PlaceholderRange",
        torch=torch,
        dataclass=dataclass,
        cached_property=cached_property,
    )["PlaceholderRange"]

    functions = {name: _load_vllm(wheel, name) for name in _VLLM_CLASSES}

    prepare_omni, prepare_own = omni.load_vllm(wheel), own.load_vllm(wheel)

    def prepare(workload: Workload) -> Callable[[], Any]:
        if workload.model_type in own.FAMILIES:
            return prepare_own(workload)
        if workload.model_type == omni.MODEL_TYPE:
            return prepare_omni(workload)
        config = hf_config(workload.model_type)
        function = functions[workload.model_type]
        tokens = workload.input_ids[0].tolist()
        features = _vllm_features(workload, placeholder_range)
        return lambda: function(config, tokens, features)

    def convert(answer: tuple[Tensor, int]) -> Answer:
        position_ids, delta = answer
        return position_ids[:, None], torch.tensor([[delta]])

    return Provider(
        f"vllm-{wheel.version}",
        wheel.version,
        "vllm",
        prepare,
        convert=convert,
        host_only=True,
        one_row_only=True,
        touching=True,
        audio_beside_sound=False,
        families=(*_VLLM_CLASSES, omni.MODEL_TYPE, *own.VLLM_FAMILIES),
    )


def _load_vllm(wheel: Wheel, model_type: str) -> Callable[..., Any]:
    """Return a family's function, of a configuration, tokens and features."""
    import numpy as np

    module, model_class = _VLLM_CLASSES[model_type]
    member = f"vllm/model_executor/models/{module}.py"

    def of_class(*names: str, **namespace: Any) -> dict[str, Any]:
        given = {"torch": torch, "np": np, **namespace}
        return load(wheel, member, *(f"{model_class}.{name}" for name in names), **given)

    if model_type == "qwen3_vl":
        static = SimpleNamespace(**of_class("_iter_mm_grid_hw"))
        name = "_get_mrope_input_positions"
        function = of_class(name, **{model_class: static})[name]
        return lambda config, tokens, features: function(tokens, features, config)
    methods = of_class("iter_mm_grid_thw", "get_mrope_input_positions")

    def call(config: SimpleNamespace, tokens: list[int], features: list[Any]) -> Any:
        model = SimpleNamespace(config=config)
        model.iter_mm_grid_thw = MethodType(methods["iter_mm_grid_thw"], model)
        return methods["get_mrope_input_positions"](model, tokens, features)

    return call


def _call_glm4v(function: Any, workload: Workload) -> Callable[[], Answer]:
    config, arguments = hf_config(MODEL_TYPE), tensor_arguments(workload)
    return lambda: function(workload.input_ids, config, **arguments)


def _sglang_exec() -> SimpleNamespace:
    """Stand for SGLang's global settings."""
    return SimpleNamespace(deterministic=SimpleNamespace(rl_on_policy_target=None))


def _load_glm4v(path: Path) -> tuple[Wheel, Any]:
    wheel = Wheel(path, "sglang")
    for member, name in _SGLANG_PLACES.items():
        if wheel.has(member):
            definitions = load(wheel, member, name, torch=torch, itertools=itertools)
            return wheel, definitions[_GLM4V]
    raise ValueError(f"{path} has {_GLM4V} in none of {', '.join(_SGLANG_PLACES)}")


def _spec(model_type: str) -> MRopeSpec:
    return MRopeSpec.for_model(model_type, convention="sglang")


def hf_config(model_type: str) -> SimpleNamespace:
    """Return what the functions read of a configuration, by all the names that they have for it."""
    spec = _spec(model_type)
    return SimpleNamespace(
        image_token_id=spec.image_token_id,
        im_patch_id=spec.image_token_id,
        video_token_id=spec.video_token_id,
        video_start_token_id=spec.video_start_token_id,
        video_end_token_id=spec.video_end_token_id,
        vision_start_token_id=spec.vision_start_token_id,
        vision_end_token_id=_QWEN_VISION_END_ID,
        spatial_conv_size=spec.spatial_merge_size,
        temporal_conv_size=spec.temporal_merge_size,
        vision_config=SimpleNamespace(
            spatial_merge_size=spec.spatial_merge_size,
            temporal_merge_size=spec.temporal_merge_size,
            tokens_per_second=spec.tokens_per_second,
        ),
    )


def _vllm_features(workload: Workload, placeholder_range: Any) -> list[Any]:
    """Describe a row as vLLM's processors do: one feature an image, and one a whole video.

    A video's feature reaches from its first placeholder to its last, and `is_embed` marks those in
    it. With Qwen3-VL it begins at the marker before the first.
    """
    kinds = workload.mm_token_type_ids[0]
    runs = iter(workload.runs)
    images = iter(() if workload.image_grid_thw is None else workload.image_grid_thw)
    videos = iter(() if workload.video_grid_thw is None else workload.video_grid_thw)
    seconds = iter(() if workload.second_per_grid_ts is None else workload.second_per_grid_ts)
    features = []
    for start, stop, kind in runs:
        is_embed = None
        if kind == VIDEO:
            modality, grid = "video", next(videos)
            frames = int(grid[0]) if _spec(workload.model_type).separate_frames else 1
            for _ in range(frames - 1):
                _, stop, _ = next(runs)
            is_embed = kinds[start:stop] == VIDEO
            if workload.model_type == "qwen3_vl":
                start -= 1
        else:
            modality, grid = "image", next(images)
        place = placeholder_range(offset=start, length=stop - start, is_embed=is_embed)
        data = {f"{modality}_grid_thw": SimpleNamespace(data=grid)}
        if modality == "video" and workload.second_per_grid_ts is not None:
            data["second_per_grid_ts"] = SimpleNamespace(data=next(seconds))
        features.append(SimpleNamespace(modality=modality, data=data, mm_position=place))
    return features
