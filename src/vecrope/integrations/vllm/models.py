"""The classes of vLLM that define `get_mrope_input_positions`, and what answers for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor

from vecrope.integrations.vllm.features import (
    between_markers,
    from_grids,
    images,
    with_separators,
)
from vecrope.integrations.vllm.groups import Group, positions_of_groups
from vecrope.integrations.vllm.own_rules import answer_canvas, answer_isaac, answer_omni

Answer = Callable[[Any, list[int], list[Any]], tuple[Tensor, int]]
_Groups = Callable[[Any, list[int], list[Any]], Iterable[Group]]


def answer_by_groups(groups_of: _Groups) -> Answer:
    """Return the function that answers by the groups that a model's features describe."""

    def answer(model: Any, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        groups = list(groups_of(model, input_tokens, mm_features))
        return positions_of_groups(len(input_tokens), groups)

    return answer


# The classes that define the method, by module, and what answers for them. Others inherit it, or
# count tokens, and keep what they have.
_GROUPS: tuple[tuple[str, str, _Groups], ...] = (
    ("bailing_moe_v3_vl", "BailingMoeV3VLForConditionalGeneration", images),
    ("cohere_compass", "CohereCompassForConditionalGeneration", from_grids),
    ("cosmos3_edge", "Cosmos3EdgeForConditionalGeneration", between_markers),
    ("ernie45_vl", "Ernie4_5_VLMoeForConditionalGeneration", from_grids),
    ("glm4_1v", "Glm4vForConditionalGeneration", from_grids),
    ("keye", "KeyeForConditionalGeneration", from_grids),
    ("keye_vl1_5", "KeyeVL1_5ForConditionalGeneration", from_grids),
    ("openpangu_vl", "OpenPanguVLForConditionalGeneration", with_separators),
    ("paddleocr_vl", "PaddleOCRVLForConditionalGeneration", from_grids),
    ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", from_grids),
    ("qwen2_vl", "Qwen2VLForConditionalGeneration", from_grids),
    ("qwen3_vl", "Qwen3VLForConditionalGeneration", between_markers),
)
_OWN: tuple[tuple[str, str, Answer], ...] = (
    ("isaac", "IsaacForConditionalGeneration", answer_isaac),
    ("minicpmv4_7", "MiniCPMV4_7ForConditionalGeneration", answer_canvas),
    (
        "qwen2_5_omni_thinker",
        "Qwen2_5OmniThinkerForConditionalGeneration",
        partial(answer_omni, "qwen2_5_omni"),
    ),
    (
        "qwen3_omni_moe_thinker",
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        partial(answer_omni, "qwen3_omni_moe"),
    ),
)
CLASSES: dict[str, dict[str, Answer]] = {
    f"vllm.model_executor.models.{module}": {name: answer}
    for module, name, answer in (
        *((module, name, answer_by_groups(groups_of)) for module, name, groups_of in _GROUPS),
        *_OWN,
    )
}


def get_mrope_input_positions(
    model: Any, input_tokens: list[int], mm_features: list[Any]
) -> tuple[Tensor, int]:
    """Return the M-RoPE positions of a prompt that a model's method of this name returns.

    Args:
        model: of a class that `register` knows, or of one derived from it.
        input_tokens: the tokens of the prompt, at least one.
        mm_features: vLLM's `MultiModalFeatureSpec` objects, in any order.

    Returns:
        (3, N) int64 on the CPU, and the row's largest position plus one, less N.

    Raises:
        TypeError: for a model of another class.
        ValueError: for features that do not fit the prompt or are not of the model's modalities, a
            prompt without tokens, or frames whose tokens have been pruned in part.

    An assertion of vLLM's about its features, such as one frame an image, is raised as it is.
    """
    for owner in type(model).__mro__:
        answer = CLASSES.get(owner.__module__, {}).get(owner.__name__)
        if answer is not None:
            return answer(model, input_tokens, mm_features)
    known = ", ".join(name for classes in CLASSES.values() for name in classes)
    raise TypeError(f"model must be one of {known} of vLLM, got {type(model).__name__}")
