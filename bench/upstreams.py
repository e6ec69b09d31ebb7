"""The functions that vecrope replaces, as providers: transformers', SGLang's and vLLM's.

Each is the upstream's own code, called with stand-ins for the model and the configuration that it
reads its ids from.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench.providers import Answer, Provider, tensor_arguments, text_only_answer
from bench.wheels import Wheel, load
from bench.workloads import MODEL_TYPE, VIDEO, Workload
from vecrope import MRopeSpec

_SGLANG_NAME = "get_rope_index_glm4v"
# Where SGLang has kept that function, the latest place first.
_SGLANG_PLACES = {
    "sglang/srt/layers/rotary_embedding/mrope_rope_index.py": _SGLANG_NAME,
    "sglang/srt/layers/rotary_embedding.py": f"MRotaryEmbedding.{_SGLANG_NAME}",
}


def transformers_provider() -> Provider:
    """Return the `Glm4vModel.get_rope_index` of the installed transformers."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        from transformers.models.glm4v.modeling_glm4v import Glm4vModel

        model = SimpleNamespace(config=_hf_config())
        model.get_vision_position_ids = MethodType(Glm4vModel.get_vision_position_ids, model)
        arguments = tensor_arguments(workload)
        arguments["mm_token_type_ids"] = workload.mm_token_type_ids
        return lambda: Glm4vModel.get_rope_index(model, workload.input_ids, **arguments)

    try:
        version = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        version = ""  # each of its points will say so
    return Provider("transformers", version, "transformers", prepare)


def sglang_provider(path: Path) -> Provider:
    """Return the `get_rope_index_glm4v` of an SGLang wheel."""
    wheel, function = _load_sglang(path)

    def prepare(workload: Workload) -> Callable[[], Answer]:
        config = _hf_config()
        arguments = tensor_arguments(workload)
        return lambda: function(workload.input_ids, config, **arguments)

    return Provider(f"sglang-{wheel.version}", wheel.version, "sglang", prepare)


def text_only_provider(path: Path) -> Provider:
    """Return the same function without grids: it then answers as if all tokens were text."""
    wheel, function = _load_sglang(path)

    def prepare(workload: Workload) -> Callable[[], Answer]:
        config = _hf_config()
        return lambda: function(workload.input_ids, config, None, None, workload.attention_mask)

    return Provider(
        "text-only", wheel.version, "sglang", prepare, oracle=text_only_answer, only=("seed",)
    )


def vllm_provider(path: Path) -> Provider:
    """Return the `get_mrope_input_positions` of a vLLM wheel's GLM-4V."""
    import numpy as np

    wheel = Wheel(path, "vllm")
    model_class = "Glm4vForConditionalGeneration"
    methods = load(
        wheel,
        "vllm/model_executor/models/glm4_1v.py",
        f"{model_class}.iter_mm_grid_thw",
        f"{model_class}.get_mrope_input_positions",
        torch=torch,
        np=np,
    )
    placeholder_range = load(
        wheel,
        "vllm/multimodal/inputs.py",
        "PlaceholderRange",
        torch=torch,
        dataclass=dataclass,
        cached_property=cached_property,
    )["PlaceholderRange"]

    def prepare(workload: Workload) -> Callable[[], Any]:
        model = SimpleNamespace(config=_hf_config())
        model.iter_mm_grid_thw = MethodType(methods["iter_mm_grid_thw"], model)
        function = methods["get_mrope_input_positions"]
        tokens = workload.input_ids[0].tolist()
        features = _vllm_features(workload, placeholder_range)
        return lambda: function(model, tokens, features)

    def convert(answer: tuple[Tensor, int]) -> Answer:
        position_ids, delta = answer
        return position_ids[:, None], torch.tensor([[delta]])

    return Provider(
        f"vllm-{wheel.version}",
        wheel.version,
        "sglang",
        prepare,
        convert=convert,
        host_only=True,
        one_row_only=True,
    )


def _load_sglang(path: Path) -> tuple[Wheel, Any]:
    wheel = Wheel(path, "sglang")
    for member, name in _SGLANG_PLACES.items():
        if wheel.has(member):
            definitions = load(wheel, member, name, torch=torch, itertools=itertools)
            return wheel, definitions[_SGLANG_NAME]
    raise ValueError(f"{path} has {_SGLANG_NAME} in none of {', '.join(_SGLANG_PLACES)}")


def _hf_config() -> SimpleNamespace:
    spec = MRopeSpec.for_model(MODEL_TYPE, convention="sglang")
    return SimpleNamespace(
        image_token_id=spec.image_token_id,
        video_start_token_id=spec.video_start_token_id,
        video_end_token_id=spec.video_end_token_id,
        vision_config=SimpleNamespace(spatial_merge_size=spec.spatial_merge_size),
    )


def _vllm_features(workload: Workload, placeholder_range: Any) -> list[Any]:
    """Describe a row as vLLM's processor does: one feature an image, and one a whole video.

    A video's feature reaches from its first frame token to its last, and `is_embed` marks the
    frames' tokens in it.
    """
    kinds = workload.mm_token_type_ids[0]
    bounds = torch.nn.functional.pad(kinds, (1, 1)).diff().nonzero().flatten().tolist()
    runs = deque(zip(bounds[::2], bounds[1::2], strict=True))
    images = iter(() if workload.image_grid_thw is None else workload.image_grid_thw)
    videos = iter(() if workload.video_grid_thw is None else workload.video_grid_thw)
    features = []
    while runs:
        start, stop = runs.popleft()
        if int(kinds[start]) == VIDEO:
            modality, grid = "video", next(videos)
            for _ in range(int(grid[0]) - 1):
                _, stop = runs.popleft()
            is_embed = kinds[start:stop] == VIDEO
        else:
            modality, grid, is_embed = "image", next(images), None
        place = placeholder_range(offset=start, length=stop - start, is_embed=is_embed)
        data = {f"{modality}_grid_thw": SimpleNamespace(data=grid)}
        features.append(SimpleNamespace(modality=modality, data=data, mm_position=place))
    return features
