"""The upstreams' own functions as oracles: transformers' installed ones, others out of wheels.

Each takes a prompt and answers as `vecrope.get_rope_index` does, (3, B, T) positions and (B, 1)
deltas, or raises what the upstream raises.
"""

import itertools
from collections import deque
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
from own_support import SGLANG_WHEEL, VLLM_WHEEL
from support import grid_list, kept

from bench.wheels import Wheel, load
from vecrope import MRopeSpec
from vecrope.families import FAMILIES
from vecrope.testing import Prompt

# What stands in for fields that a configuration class has no default of.
STAND_INS = {
    "image_token_id": 9,
    "video_token_id": 10,
    "video_start_token_id": 11,
    "video_end_token_id": 12,
    "vision_start_token_id": 13,
    "spatial_merge_size": 2,
    "tokens_per_second": 2,
}

CORE = [
    (model_type, convention)
    for model_type, family in FAMILIES.items()
    for convention in family.rules
    if family.own_rule is None or convention in family.shared_in
]


def without_default(model_type, convention):
    """Return stand-ins for the fields that `for_model` must be given."""
    family = FAMILIES[model_type]
    paths = {**family.paths, **family.paths_by_convention.get(convention, {})}
    defaults = {**family.defaults, **family.defaults_by_convention.get(convention, {})}
    return {name: STAND_INS[name] for name in paths if name not in defaults}


WITHOUT_DEFAULT = {family: given for family in CORE if (given := without_default(*family))}


def spec_of(model_type, convention, **fields):
    given = {**WITHOUT_DEFAULT.get((model_type, convention), {}), **fields}
    return MRopeSpec.for_model(model_type, convention=convention, **given)


def families_of(convention):
    return [model_type for model_type, other in CORE if other == convention]


def distinct_rules():
    """Return one family of each set of rules, ids and sizes aside."""
    nothing = {"model_type": "", "image_token_id": 0, "spatial_merge_size": 2}
    found = {}
    for model_type, convention in CORE:
        spec = spec_of(model_type, convention)
        numbered = {
            name: 1 + at
            for at, name in enumerate(vars(spec))
            if name.endswith("token_id") and getattr(spec, name) is not None
        }
        found.setdefault(replace(spec, **{**nothing, **numbered}), spec)
    return list(found.values())


RULES = distinct_rules()
each_rule = pytest.mark.parametrize(
    "spec", RULES, ids=[f"{spec.model_type}-{spec.convention}" for spec in RULES]
)


each_core = pytest.mark.parametrize(("model_type", "convention"), CORE)


QWEN2 = ("qwen2_vl", "qwen2_5_vl")
GLM = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr")
FRAMES_BY_STAMPS = (
    *("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp"),
    *("cosmos3_omni", "cosmos3_edge"),
)
EVERYWHERE = ("transformers", "sglang", "vllm")


def pairs(names, *conventions):
    names = (names,) if isinstance(names, str) else names
    return [(name, convention) for name in names for convention in conventions]


def build(model_type, convention, rows, *, fields=None, **arguments):
    """Build a prompt; `V` stands for `I` where a family's videos have the placeholder of images."""
    spec = replace(spec_of(model_type, convention), **(fields or {}))
    if spec.video_token_id is None:
        rows = [row.replace("V", "I") for row in rows]
    return Prompt.from_symbols(spec, rows, **arguments)


# transformers


# Families that the installed transformers does not have yet, each with one that has the same rule.
NOT_YET_IN_TRANSFORMERS: dict[str, str] = {}


@cache
def transformers_classes(model_type):
    """Return the classes of a family's configuration and of its model."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    model_type = NOT_YET_IN_TRANSFORMERS.get(model_type, model_type)
    if model_type not in CONFIG_MAPPING_NAMES:
        pytest.fail(
            f"transformers {transformers.__version__} has no model type {model_type!r} to compare "
            "with: install a release that has it, or name a family with the same rule in "
            "NOT_YET_IN_TRANSFORMERS"
        )
    names = CONFIG_MAPPING_NAMES[model_type], MODEL_MAPPING_NAMES[model_type]
    return tuple(getattr(transformers, name) for name in names)


def transformers_function(model_type, config):
    """Return the function of a model that has this configuration and nothing else."""
    _, model_class = transformers_classes(model_type)
    model = SimpleNamespace(config=config)
    model.get_vision_position_ids = MethodType(model_class.get_vision_position_ids, model)
    return MethodType(model_class.get_rope_index, model)


def transformers_rope_index(prompt):
    spec = prompt.spec
    vision = SimpleNamespace(
        spatial_merge_size=spec.spatial_merge_size,
        temporal_merge_size=spec.temporal_merge_size,
        tokens_per_second=spec.tokens_per_second,
    )
    function = transformers_function(spec.model_type, SimpleNamespace(vision_config=vision))
    return function(**prompt.arguments())


# SGLang


@cache
def sglang_functions():
    return load(
        Wheel(Path(SGLANG_WHEEL), "sglang"),
        "sglang/srt/layers/rotary_embedding/mrope_rope_index.py",
        *("get_rope_index", "get_rope_index_glm4v", "get_rope_index_ernie45"),
        torch=torch,
        itertools=itertools,
    )


def ernie_configuration(spec):
    """Return what SGLang reads of Ernie's original configuration."""
    return SimpleNamespace(
        im_patch_id=spec.image_token_id,
        video_start_token_id=spec.video_start_token_id,
        video_end_token_id=spec.video_end_token_id,
        spatial_conv_size=spec.spatial_merge_size,
        temporal_conv_size=spec.temporal_merge_size,
    )


def sglang_rope_index(prompt):
    """Answer as SGLang does; where it answers (3, 1, T) for any number of rows, for each row.

    Without any grid SGLang's GLM-4V takes the largest position over the padding too, which holds 1.
    """
    spec = prompt.spec
    grids = {"image_grid_thw": prompt.image_grid_thw, "video_grid_thw": prompt.video_grid_thw}
    if spec.model_type.startswith("glm"):
        config = SimpleNamespace(
            image_token_id=spec.image_token_id,
            video_start_token_id=spec.video_start_token_id,
            video_end_token_id=spec.video_end_token_id,
            vision_config=SimpleNamespace(spatial_merge_size=spec.spatial_merge_size),
        )
        position_ids, rope_deltas = sglang_functions()["get_rope_index_glm4v"](
            prompt.input_ids, config, **grids, attention_mask=prompt.attention_mask
        )
        if all(grid is None for grid in grids.values()):
            keep = kept(prompt)
            masked = ~keep.all(1, keepdim=True)
            leaked = (2 - keep.sum(1, keepdim=True)).clamp(min=0) * masked
            rope_deltas = rope_deltas - leaked
        return position_ids, rope_deltas
    if spec.model_type == "ernie4_5_vl_moe":
        config = ernie_configuration(spec)
        answer = sglang_functions()["get_rope_index_ernie45"](prompt.input_ids, config, **grids)
    else:
        answer = sglang_functions()["get_rope_index"](
            spatial_merge_size=spec.spatial_merge_size,
            image_token_id=spec.image_token_id,
            video_token_id=spec.video_token_id,
            vision_start_token_id=spec.vision_start_token_id,
            model_type=spec.model_type,
            tokens_per_second=spec.tokens_per_second,
            input_ids=prompt.input_ids,
            **grids,
            second_per_grid_ts=prompt.second_per_grid_ts,
        )
    position_ids, rope_deltas = answer
    batch = len(prompt.input_ids)
    return position_ids.expand(3, batch, -1), rope_deltas.expand(batch, 1)


# vLLM

_VLLM_CLASSES = {
    **dict.fromkeys(
        ("glm4v", "glm4v_moe", "glm_ocr"), ("glm4_1v", "Glm4vForConditionalGeneration")
    ),
    "qwen2_vl": ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "paddleocr_vl": ("paddleocr_vl", "PaddleOCRVLForConditionalGeneration"),
    "cohere_compass": ("cohere_compass", "CohereCompassForConditionalGeneration"),
    "ernie4_5_vl_moe": ("ernie45_vl", "Ernie4_5_VLMoeForConditionalGeneration"),
    "keye": ("keye", "KeyeForConditionalGeneration"),
    "keye_vl1_5": ("keye_vl1_5", "KeyeVL1_5ForConditionalGeneration"),
    "bailing_moe_v3_vl": ("bailing_moe_v3_vl", "BailingMoeV3VLForConditionalGeneration"),
    "openpangu_vl": ("openpangu_vl", "OpenPanguVLForConditionalGeneration"),
}
_QWEN3_VL = "Qwen3VLForConditionalGeneration"


def _load_vllm(module, *names, **namespace):
    member = f"vllm/model_executor/models/{module}.py"
    return load(Wheel(Path(VLLM_WHEEL), "vllm"), member, *names, torch=torch, np=np, **namespace)


@cache
def vllm_placeholder_range():
    return load(
        Wheel(Path(VLLM_WHEEL), "vllm"),
        "vllm/multimodal/inputs.py",
        "PlaceholderRange",
        torch=torch,
        dataclass=dataclass,
        cached_property=cached_property,
    )["PlaceholderRange"]


@cache
def vllm_class(model_type):
    """Return a class of the name and module of a family's model, with its methods of positions."""
    module, name = _VLLM_CLASSES.get(model_type, ("qwen3_vl", _QWEN3_VL))
    methods, namespace = ["get_mrope_input_positions"], {}
    static = {
        "keye": ["_split_video_grid_thw"],
        "qwen3_vl": ["_iter_mm_grid_hw", "_get_mrope_input_positions"],
    }.get(module, [])
    if module not in ("bailing_moe_v3_vl", "qwen3_vl"):
        methods.append("iter_mm_grid_thw")
    if module == "keye_vl1_5":
        namespace = _load_vllm(module, "split_thw")
    if module == "qwen3_vl":
        iterate = _load_vllm(module, f"{name}._iter_mm_grid_hw")
        namespace = {name: SimpleNamespace(**iterate)}
    found = _load_vllm(module, *(f"{name}.{method}" for method in methods + static), **namespace)
    found.update({method: staticmethod(found[method]) for method in static})
    return type(name, (), {**found, "__module__": f"vllm.model_executor.models.{module}"})


def vllm_function(model, tokens, features):
    return model.get_mrope_input_positions(tokens, features)


def vllm_rope_index(prompt, function=vllm_function):
    """Answer as vLLM does for each row's unmasked tokens; masked places hold the padding value."""
    spec = prompt.spec
    model = vllm_class(spec.model_type)()
    symbols = dict(zip("".join(prompt.symbols), prompt.input_ids.flatten().tolist(), strict=True))
    vision = {"spatial_merge_size": spec.spatial_merge_size}
    if spec.tokens_per_second is not None:
        vision["tokens_per_second"] = spec.tokens_per_second
    model.config = SimpleNamespace(
        vision_config=SimpleNamespace(**vision),
        spatial_conv_size=spec.spatial_merge_size,
        temporal_conv_size=spec.temporal_merge_size,
        video_token_id=spec.video_token_id,
        vision_start_token_id=symbols.get("<"),
        vision_end_token_id=symbols.get(">"),
    )
    position_ids = torch.full((3, *prompt.input_ids.shape), spec.padding_value)
    rope_deltas = torch.zeros((len(prompt.input_ids), 1), dtype=torch.int64)
    images = deque(prompt.image_grid_thw if prompt.image_grid_thw is not None else ())
    videos = deque(enumerate(grid_list(prompt.video_grid_thw)))
    for row, keep in enumerate(kept(prompt)):
        tokens = prompt.input_ids[row, keep]
        types = prompt.mm_token_type_ids[row, keep]
        features = list(_vllm_features(prompt, types, images, videos))
        positions, delta = function(model, tokens.tolist(), features)
        position_ids[:, row, keep] = positions
        rope_deltas[row] = delta
    return position_ids, rope_deltas


def _vllm_features(prompt, types, images, videos):
    """Describe a row as vLLM's processors do: one feature an image, and one a whole video.

    A video's feature reaches from its first placeholder to its last, and `is_embed` marks the
    placeholders in it. With Qwen3-VL it begins at the marker before the first.
    """
    spec = prompt.spec
    merge = spec.spatial_merge_size
    at = 0
    while at < len(types):
        start = at
        if types[at] == 0:
            at += 1
            continue
        if types[at] == 1:
            grid = images.popleft()
            t, h, w = grid.tolist()
            modality, seconds = "image", None
        else:
            index, (t, h, w) = videos.popleft()
            grid = torch.tensor((t, h, w))
            t //= spec.temporal_merge_size
            modality, seconds = "video", prompt.second_per_grid_ts
        left = t * (h // merge) * (w // merge)
        while left:
            left -= int(types[at] == types[start])
            at += 1
        if spec.model_type.startswith("keye"):
            grid = grid.unsqueeze(0)
        data = {f"{modality}_grid_thw": SimpleNamespace(data=grid)}
        if seconds is not None:
            second = seconds[index]
            second = torch.as_tensor(
                second, dtype=None if torch.is_tensor(second) else torch.float64
            )
            data["second_per_grid_ts"] = SimpleNamespace(data=second)
        place = vllm_placeholder_range()(
            offset=start - (modality == "video" and spec.model_type not in _VLLM_CLASSES),
            length=at - start,
            is_embed=types[start:at] == types[start] if modality == "video" else None,
        )
        yield SimpleNamespace(modality=modality, data=data, mm_position=place)
