"""The functions of families with a rule of their own, as those of the others in `upstreams`."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from types import MethodType, SimpleNamespace
from typing import Any, NamedTuple

import torch

import vecrope
from bench.prompts import Workload
from bench.wheels import Wheel, load
from vecrope import Convention, MRopeSpec
from vecrope.testing import Prompt

_MINICPM_MARKERS = ("im_start_id", "im_end_id", "slice_start_id", "slice_end_id")
# What a checkpoint's configuration says, of families whose classes have no ids.
_CONFIGS: dict[str, dict[str, Any]] = {
    "glm_image": {
        "image_token_id": 167855,
        "image_start_token_id": 16384,
        "image_end_token_id": 16385,
    },
    "hunyuan_vl": {
        "image_token_id": 120120,
        "vision_config": {"spatial_merge_size": 2},
        "text_config": {"rope_parameters": {"mrope_section": [16, 16, 16, 16]}},
    },
    "isaac": {"image_token_id": 151655, "vision_config": {"pixel_shuffle_scale_factor": 2}},
    "bailing_moe_v3_vl": {
        "text_config": {
            "image_patch_token": 157157,
            "video_patch_token": 157175,
            "image_start_token": 157158,
            "video_start_token": 157160,
            "use_interleaved_frame_timestamp": False,
            "max_position_embeddings": 2**31,
        },
        "image_token_id": 157157,
        "vision_config": {"spatial_merge_size": 2},
    },
    "minicpmv4_7": {
        "image_token_id": 151667,
        "video_token_id": 151668,
        "uses_mrope_canvas": True,
        "image_start_id": 151669,
        "image_end_id": 151670,
        "newline_id": 198,
        "slice_start_id": 151677,
        "slice_end_id": 151678,
        "downsample_mode": "16x",
    },
}
FAMILIES = tuple(_CONFIGS)
TRANSFORMERS_FAMILIES = ("glm_image", "hunyuan_vl", "minicpmv4_7")
SGLANG_FAMILIES = ("glm_image", "bailing_moe_v3_vl", "minicpmv4_7")
VLLM_FAMILIES = ("isaac", "bailing_moe_v3_vl", "minicpmv4_7")


@cache
def spec_of(model_type: str, convention: Convention) -> MRopeSpec:
    """Return the rules of a family."""
    config = {"model_type": model_type, **_CONFIGS[model_type]}
    return MRopeSpec.from_config(config, convention=convention)


def prepare_loop(workload: Workload, spec: MRopeSpec) -> Callable[[], Any]:
    """Return the loop reference, from tensors to tensors."""
    return _prompt(workload, spec).expected


def prepare_vecrope(
    workload: Workload, spec: MRopeSpec, function: Any, **options: Any
) -> Callable[[], Any]:
    """Return a call of vecrope's function, which numbers what GLM-Image generates as well.

    The upstreams' functions do so in the same call.
    """
    arguments = _prompt(workload, spec).arguments()
    arguments.pop("mm_token_type_ids", None)
    if spec.model_type != "glm_image":
        return lambda: function(spec=spec, **arguments, **options)
    decode_options = dict(options)
    if options.get("validate", True) is False and not workload.input_ids.is_cpu:
        decode_options["max_decode_tokens"] = 4096

    def call() -> Any:
        answer = function(spec=spec, **arguments, **options)
        vecrope.get_decode_position_ids(spec=spec, **arguments, **decode_options)
        return answer

    return call


def prepare_transformers(workload: Workload) -> Callable[[], Any]:
    """Return transformers' function, called with types as its model does."""
    from transformers.models.glm_image.modeling_glm_image import GlmImageModel
    from transformers.models.hunyuan_vl.modeling_hunyuan_vl import HunYuanVLModel
    from transformers.models.minicpmv4_7.modeling_minicpmv4_7 import MiniCPMV4_7Model

    spec = spec_of(workload.model_type, "transformers")
    arguments = _prompt(workload, spec).arguments()
    rule: Any = spec.own_rule
    model_class, names = {
        "glm_image": (GlmImageModel, ("get_vision_position_ids",)),
        "hunyuan_vl": (HunYuanVLModel, ("get_vision_position_ids",)),
        "minicpmv4_7": (
            MiniCPMV4_7Model,
            ("_group_visual_frames", "_frame_end_idx", "get_vision_position_ids"),
        ),
    }[workload.model_type]
    config: dict[str, Any] = dict(vars(rule))
    if workload.model_type == "hunyuan_vl":
        arguments["mm_token_type_ids"] = workload.mm_token_type_ids
        parameters = {"mrope_section": [16] * rule.num_axes}
        config["text_config"] = SimpleNamespace(rope_parameters=parameters)
        config["vision_config"] = SimpleNamespace(spatial_merge_size=spec.spatial_merge_size)
    model = SimpleNamespace(config=SimpleNamespace(**config))
    for name in names:
        method = getattr(model_class, name)
        is_static = isinstance(model_class.__dict__[name], staticmethod)
        setattr(model, name, method if is_static else MethodType(method, model))
    return lambda: model_class.get_rope_index(model, **arguments)


def load_sglang(wheel: Wheel) -> Callable[[Workload], Callable[[], Any]]:
    """Return what prepares SGLang's functions."""
    folder = "sglang/srt"
    rotary = load(
        wheel,
        f"{folder}/layers/rotary_embedding/bailing_mrope.py",
        "BailingMRotaryEmbedding",
        torch=torch,
        RotaryEmbedding=object,
    )["BailingMRotaryEmbedding"]
    name = "_compute_glm_image_mrope_positions"
    glm_image = load(
        wheel,
        f"{folder}/multimodal/processors/glm_image.py",
        f"GlmImageProcessor.{name}",
        torch=torch,
    )[name]
    minicpm = load(
        wheel,
        f"{folder}/multimodal/processors/minicpmv4_7.py",
        *("_llm_grid", "build_image_bounds", "_frame_end", "_group_frames", "_fill_text"),
        *("_fill_grid", "_place_frame", "compute_canvas_positions", "_rope_delta"),
        torch=torch,
        math=math,
        _STRUCTURAL_KEYS=_MINICPM_MARKERS,
    )

    def prepare(workload: Workload) -> Callable[[], Any]:
        spec, ids = spec_of(workload.model_type, "sglang"), workload.input_ids[0]
        rule: Any = spec.own_rule
        if workload.model_type == "glm_image":
            processor = SimpleNamespace(
                IMAGE_START_TOKEN_ID=rule.image_start_token_id,
                IMAGE_END_TOKEN_ID=rule.image_end_token_id,
            )

            def call_glm_image() -> Any:
                # What is generated follows the prompt.
                positions, delta = glm_image(processor, ids, workload.image_grid_thw)
                return positions[:, None, : len(ids)], delta.view(1, 1)

            return call_glm_image
        if workload.model_type == "minicpmv4_7":
            tokens = _minicpm_ids(spec)
            sizes = [size for _, _, size in _crops(workload, spec)]

            def call_minicpm() -> Any:
                bounds = minicpm["build_image_bounds"](ids, tokens)
                positions = minicpm["compute_canvas_positions"](ids, bounds, sizes, tokens)
                return positions[:, None], minicpm["_rope_delta"](positions)

            return call_minicpm
        text = _CONFIGS["bailing_moe_v3_vl"]["text_config"]
        config = SimpleNamespace(
            vision_config=SimpleNamespace(spatial_merge_size=spec.spatial_merge_size),
            text_config=SimpleNamespace(rope_parameters={}, **text),
        )
        grids = workload.image_grid_thw, workload.video_grid_thw
        return lambda: rotary.bailing_3drope_get_input_positions_tensor(ids, config, *grids)

    return prepare


def load_vllm(wheel: Wheel) -> Callable[[Workload], Callable[[], Any]]:
    """Return what prepares vLLM's functions."""
    import numpy as np

    folder, name = "vllm/model_executor/models", "get_mrope_input_positions"
    isaac_class = "IsaacForConditionalGeneration"
    methods: dict[str, dict[str, Any]] = {
        "isaac": load(
            wheel,
            f"{folder}/isaac.py",
            *(f"{isaac_class}.iter_mm_grid_hw", f"{isaac_class}.{name}"),
            torch=torch,
            np=np,
        ),
        "bailing_moe_v3_vl": load(
            wheel,
            f"{folder}/bailing_moe_v3_vl.py",
            f"BailingMoeV3VLForConditionalGeneration.{name}",
            torch=torch,
            np=np,
        ),
        "minicpmv4_7": load(
            wheel,
            f"{folder}/minicpmv4_7.py",
            *("compute_llm_grid", "build_image_bounds", "_compute_canvas_single", "_target_hw"),
            *("_CanvasLayout", "_canvas_layout", "_assign_canvas_span", "_compute_canvas_packed"),
            *("canvas_rope_delta", "_as_hw_pairs", "_sequential_positions"),
            f"MiniCPMV4_7ForConditionalGeneration.{name}",
            torch=torch,
            math=math,
            NamedTuple=NamedTuple,
            Any=Any,
            logger=logging.getLogger(__name__),
        ),
    }

    def prepare(workload: Workload) -> Callable[[], Any]:
        spec, found = spec_of(workload.model_type, "vllm"), methods[workload.model_type]
        vision = SimpleNamespace(
            pixel_shuffle_scale_factor=spec.spatial_merge_size,
            spatial_merge_size=spec.spatial_merge_size,
        )
        model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
        if workload.model_type == "isaac":
            model.iter_mm_grid_hw = MethodType(found["iter_mm_grid_hw"], model)
        if workload.model_type == "minicpmv4_7":
            model._uses_canvas_mrope, model._canvas_special_ids = True, _minicpm_ids(spec)
        tokens, features = workload.input_ids[0].tolist(), list(_features(workload, spec))
        return lambda: found[name](model, tokens, features)

    return prepare


def _minicpm_ids(spec: MRopeSpec) -> dict[str, int]:
    rule: Any = spec.own_rule
    names = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
    keys = (*_MINICPM_MARKERS, "newline_id")
    return {key: getattr(rule, name) for key, name in zip(keys, names, strict=True)}


def _features(workload: Workload, spec: MRopeSpec) -> Iterator[SimpleNamespace]:
    """Yield a row's pictures as vLLM's processors describe them."""
    for offset, kind, size in _crops(workload, spec):
        if workload.model_type == "minicpmv4_7":
            key = "tgt_sizes" if kind == "image" else "video_tgt_sizes"
        else:
            key = "image_grid_thw"
        data = {key: SimpleNamespace(data=torch.tensor(size))}
        place = SimpleNamespace(offset=offset)
        yield SimpleNamespace(modality=kind, data=data, mm_position=place)


def _crops(workload: Workload, spec: MRopeSpec) -> list[tuple[int, str, list[int]]]:
    """Return where each run of placeholders of a row starts, its kind, and its size or grid."""
    symbols = _prompt(workload, spec).symbols[0]
    images, videos = (
        iter([] if values is None else values.tolist())
        for values in (
            (workload.target_sizes, workload.target_sizes_videos)
            if workload.model_type == "minicpmv4_7"
            else (workload.image_grid_thw, workload.video_grid_thw)
        )
    )
    return [
        (run.start(), *(("image", next(images)) if run[0][0] == "I" else ("video", next(videos))))
        for run in re.finditer("I+|V+", symbols)
    ]


def _prompt(workload: Workload, spec: MRopeSpec) -> Prompt:
    return Prompt(
        input_ids=workload.input_ids,
        attention_mask=workload.attention_mask,
        mm_token_type_ids=workload.mm_token_type_ids,
        image_grid_thw=workload.image_grid_thw,
        video_grid_thw=workload.video_grid_thw,
        target_sizes=workload.target_sizes,
        target_sizes_videos=workload.target_sizes_videos,
        images_per_sample=workload.images_per_sample,
        spec=spec,
    )
