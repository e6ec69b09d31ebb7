"""What the positions of a request cost in vLLM, with the plugin and without.

`python -m bench.vllm_requests --vllm WHEEL` takes the methods of vLLM's models, and the classes of
its features, out of a wheel, and calls the methods as vLLM's runner does: as they are, and as the
plugin replaces them.
"""

from __future__ import annotations

import sys
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from types import SimpleNamespace
from typing import Any

import torch

from bench.omni import MODEL_TYPES, configuration
from bench.prompts import VIDEO, Row
from bench.requests import Engine, Positions, main
from bench.upstreams import hf_config
from bench.wheels import Wheel, load
from vecrope import MRopeSpec
from vecrope.integrations.vllm.models import CLASSES
from vecrope.integrations.vllm.plugin import replacement

_MODELS = {
    "qwen2_vl": ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
    "glm4v": ("glm4_1v", "Glm4vForConditionalGeneration"),
    "ernie4_5_vl_moe": ("ernie45_vl", "Ernie4_5_VLMoeForConditionalGeneration"),
    "qwen2_5_omni": ("qwen2_5_omni_thinker", "Qwen2_5OmniThinkerForConditionalGeneration"),
    "qwen3_omni_moe": ("qwen3_omni_moe_thinker", "Qwen3OmniMoeThinkerForConditionalGeneration"),
}
# Of what the methods call: static methods, and functions of a module.
_STATIC = ("_iter_mm_grid_hw", "_get_mrope_input_positions")
_FUNCTIONS = ("_get_feature_tensor", "_get_feat_extract_output_lengths")
_HOME = "vllm.model_executor.models."


def load_calls(wheel: Wheel, model_type: str) -> Callable[[Row], tuple[Positions, Positions]]:
    """Return what makes the calls of a request of a family: the plugin's, and vLLM's own."""
    feature_classes = load_feature_classes(wheel)
    model = load_model(wheel, model_type)
    own = type(model).get_mrope_input_positions
    ours = replacement(own, CLASSES[type(model).__module__][type(model).__name__])

    def calls_of(row: Row) -> tuple[Positions, Positions]:
        arguments = model, row.ids, list(features_of(row, feature_classes))
        return partial(ours, *arguments), partial(own, *arguments)

    return calls_of


def features_of(row: Row, classes: SimpleNamespace) -> Iterator[Any]:
    """Describe the items of a row as vLLM's processors do, in vLLM's own objects."""
    spec = row.layout.spec
    runs, videos, images = iter(row.runs), iter(row.videos), iter(row.images)
    for start, stop, kind in runs:
        is_embed, seconds = None, None
        if kind == VIDEO:
            modality, grid = "video", next(videos)
            if spec.separate_frames:
                for _ in range(grid[0] - 1):
                    _, stop, _ = next(runs)
                is_embed = torch.tensor(row.types[start:stop]) == VIDEO
                # Of Qwen3-VL the marker before the first frame belongs to the video.
                if not row.layout.video_marks:
                    start -= 1
                    is_embed = torch.cat((torch.tensor([False]), is_embed))
            elif row.seconds:
                seconds = torch.tensor(row.seconds[0])
        else:
            modality, grid = "image", next(images)
        fields = {f"{modality}_grid_thw": torch.tensor(grid)}
        if seconds is not None:
            fields["second_per_grid_ts"] = seconds
        data = {key: classes.MultiModalFieldElem(value, None) for key, value in fields.items()}
        yield classes.MultiModalFeatureSpec(
            data=classes.MultiModalKwargsItem(data),
            modality=modality,
            identifier=f"{modality} at {start}",
            mm_position=classes.PlaceholderRange(start, stop - start, is_embed),
        )


@cache
def load_feature_classes(wheel: Wheel) -> SimpleNamespace:
    """Return vLLM's classes of features."""
    names = ("PlaceholderRange", "MultiModalFeatureSpec", "MultiModalFieldElem")
    return SimpleNamespace(
        **load(
            wheel,
            "vllm/multimodal/inputs.py",
            *names,
            "MultiModalKwargsItem",
            torch=torch,
            dataclass=dataclass,
            cached_property=cached_property,
            UserDict=_Subscriptable,
            MultiModalFieldElem=None,
        )
    )


class _Subscriptable(UserDict):  # type: ignore[type-arg]
    """A `UserDict` whose type arguments are not looked at."""

    def __class_getitem__(cls, _: Any) -> type:
        return cls


def load_model(wheel: Wheel, model_type: str) -> Any:
    """Return an object of a class that has the methods of vLLM's model which number prompts."""
    import numpy as np

    module, name = _MODELS[model_type]
    home = f"{_HOME}{module}"
    member = f"{home.replace('.', '/')}.py"
    owner = type(name, (), {"__module__": home})
    is_omni = model_type in MODEL_TYPES
    given = {"torch": torch, "np": np, name: owner}
    names = ["get_mrope_input_positions", *CLASSES[home][name].helpers]
    functions = [each for each in names if each in _FUNCTIONS]
    if is_omni:
        older = f"{_HOME}qwen2_5_omni_thinker".replace(".", "/") + ".py"
        given |= load(wheel, older, "_get_feature_tensor", torch=torch)
    if functions:
        given |= load(wheel, member, *functions, torch=torch)
    methods = [f"{name}.{each}" for each in names if each not in functions]
    for key, method in load(wheel, member, *methods, **given).items():
        setattr(owner, key, staticmethod(method) if key in _STATIC else method)
    # Where the plugin looks for the functions that a model shares with others.
    sys.modules[home] = SimpleNamespace(**{name: owner})  # type: ignore[assignment]
    model = owner()
    spec = MRopeSpec.for_model(model_type, convention="vllm")
    model.config = configuration(spec) if is_omni else hf_config(model_type)  # type: ignore[attr-defined]
    if model.config.vision_config.tokens_per_second is None:  # type: ignore[attr-defined]
        del model.config.vision_config.tokens_per_second  # type: ignore[attr-defined]
    return model


ENGINE = Engine("vLLM", tuple(_MODELS), load_calls)

if __name__ == "__main__":
    sys.exit(main(ENGINE, __doc__))
