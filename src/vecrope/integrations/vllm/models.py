"""The classes of vLLM that define `get_mrope_input_positions`, and what answers for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from vecrope.forms.eager import Group, positions_of_groups
from vecrope.integrations.vllm.features import (
    between_markers,
    from_grids,
    images,
    with_separators,
)
from vecrope.integrations.vllm.own_rules import answer_minicpmv4_7, answer_omni

Answer = Callable[[Any, list[int], list[Any]], tuple[Tensor, int]]
_Groups = Callable[[Any, list[int], list[Any]], Iterable[Group]]


def answer_by_groups(groups_of: _Groups) -> Answer:
    """Return the function that answers by the groups that a model's features describe."""

    def answer(model: Any, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        groups = list(groups_of(model, input_tokens, mm_features))
        return positions_of_groups(len(input_tokens), groups)

    return answer


class Model(NamedTuple):
    """What answers for a class of vLLM's models.

    Attributes:
        answer: returns the positions of a prompt and its delta.
        fingerprints: of the method and its helpers, in every form that was compared.
        helpers: what it calls, by name: methods of the class, functions of its module, or methods
            of another class there.
        separate_frames: whether each frame of a video is a group.
        min_groups: with fewer groups vLLM's own method, which is about as fast or faster, answers.
    """

    answer: Answer
    fingerprints: Set[str]
    helpers: tuple[str, ...] = ("iter_mm_grid_thw",)
    separate_frames: bool = False
    min_groups: int = 4


_BY_GRIDS, _BY_MARKERS = answer_by_groups(from_grids), answer_by_groups(between_markers)
_BY_IMAGES, _BY_FRAMES = answer_by_groups(images), answer_by_groups(with_separators)
_OMNI, _OMNI_MOE = (partial(answer_omni, name) for name in ("qwen2_5_omni", "qwen3_omni_moe"))
_AUDIO = (
    "iter_mm_features",
    "_compute_audio_token_count",
    "_compute_interleaved_positions",
    "_get_audio_for_video_mapping",
)
_CANVAS = (
    "build_image_bounds",
    "_compute_canvas_single",
    "canvas_rope_delta",
    "_sequential_positions",
    "_as_hw_pairs",
    "_compute_canvas_packed",
    "_assign_canvas_span",
    "_canvas_layout",
    "compute_llm_grid",
    "_target_hw",
)
_QWEN3_VL = "Qwen3VLForConditionalGeneration"
# The classes that define the method, by module and name, which "ForConditionalGeneration" follows,
# with the fingerprints in vLLM 0.20.2 to 0.33. Three are known from a later release on, as they had
# other rules or other helpers before: GLM-4V from 0.25, Qwen2.5-Omni from 0.31 and
# Qwen3-Omni from 0.32. Other classes inherit the method or count tokens, and keep what they have.
_MODELS = {
    ("bailing_moe_v3_vl", "BailingMoeV3VL"): Model(_BY_IMAGES, {"5f5300375d7319c0"}, ()),
    ("cohere_compass", "CohereCompass"): Model(_BY_GRIDS, {"f9d8771bdf58904e"}),
    ("cosmos3_edge", "Cosmos3Edge"): Model(
        _BY_MARKERS,
        {"369ca60c810e48e0"},
        (f"{_QWEN3_VL}._get_mrope_input_positions", f"{_QWEN3_VL}._iter_mm_grid_hw"),
        separate_frames=True,
    ),
    ("ernie45_vl", "Ernie4_5_VLMoe"): Model(_BY_GRIDS, {"fb49b5ce96aaf02a", "26ed4aec54927cb0"}),
    ("glm4_1v", "Glm4v"): Model(
        _BY_GRIDS, {"8fc648e080c7a395", "64ec230db3245204"}, separate_frames=True
    ),
    ("keye", "Keye"): Model(
        _BY_GRIDS,
        {"c564e170f6e7e05f"},
        ("iter_mm_grid_thw", "_split_video_grid_thw"),
        separate_frames=True,
    ),
    ("keye_vl1_5", "KeyeVL1_5"): Model(
        _BY_GRIDS, {"579af19080bbc3fb"}, ("iter_mm_grid_thw", "split_thw"), separate_frames=True
    ),
    # It looks at the tokens, and is as fast as vLLM at 20 pictures.
    ("minicpmv4_7", "MiniCPMV4_7"): Model(
        answer_minicpmv4_7, {"9c3189907221f1e1"}, _CANVAS, min_groups=24
    ),
    ("openpangu_vl", "OpenPanguVL"): Model(
        _BY_FRAMES, {"1bf431017c6e804a", "d4a708de198fbae3"}, separate_frames=True
    ),
    ("paddleocr_vl", "PaddleOCRVL"): Model(_BY_GRIDS, {"756533845a981a98", "13a26c069a953632"}),
    ("qwen2_5_omni_thinker", "Qwen2_5OmniThinker"): Model(
        _OMNI, {"24a783d8061d3533"}, (*_AUDIO, "_get_feature_tensor")
    ),
    ("qwen2_5_vl", "Qwen2_5_VL"): Model(_BY_GRIDS, {"2bdf6ed5ec64e85b", "13a26c069a953632"}),
    ("qwen2_vl", "Qwen2VL"): Model(_BY_GRIDS, {"195e7b19a4ab506d", "13a26c069a953632"}),
    ("qwen3_omni_moe_thinker", "Qwen3OmniMoeThinker"): Model(
        _OMNI_MOE, {"b018e7eb7b954bd9"}, (*_AUDIO, "_get_feat_extract_output_lengths")
    ),
    ("qwen3_vl", "Qwen3VL"): Model(
        _BY_MARKERS,
        {"a1ccbf909d507787", "b056792e99c7ec3d"},
        ("_get_mrope_input_positions", "_iter_mm_grid_hw"),
        separate_frames=True,
    ),
}
CLASSES = {
    f"vllm.model_executor.models.{module}": {f"{name}ForConditionalGeneration": model}
    for (module, name), model in _MODELS.items()
}
