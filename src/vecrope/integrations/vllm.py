"""A general plugin of vLLM, by which its models' `get_mrope_input_positions` are vecrope's.

vLLM calls `register` through the entry point `vecrope` of the group `vllm.general_plugins`. What
the features of a prompt say is read by the models' own generators; only the positions are computed
here. Importing this module does not import vLLM.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, wraps
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from torch import Tensor

from vecrope.integrations.vllm_groups import Group, positions_of_groups
from vecrope.integrations.vllm_own import answer_canvas, answer_isaac, answer_omni

_logger = logging.getLogger(__name__)

# What the answers are proven equal to.
_RELEASE = "0.33"
_METHOD = "get_mrope_input_positions"

_Answer = Callable[[Any, list[int], list[Any]], tuple[Tensor, int]]
_Groups = Callable[[Any, list[int], list[Any]], Iterable[Group]]


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
        answer = _CLASSES.get(owner.__module__, {}).get(owner.__name__)
        if answer is not None:
            return answer(model, input_tokens, mm_features)
    known = ", ".join(name for classes in _CLASSES.values() for name in classes)
    raise TypeError(f"model must be one of {known} of vLLM, got {type(model).__name__}")


def _of_groups(groups_of: _Groups) -> _Answer:
    """Return what answers by the groups that a model's features describe."""

    def answer(model: Any, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        groups = list(groups_of(model, input_tokens, mm_features))
        return positions_of_groups(len(input_tokens), groups)

    return answer


def _from_grids(model: Any, _: list[int], mm_features: list[Any]) -> Iterable[Group]:
    groups: Iterable[Group] = model.iter_mm_grid_thw(mm_features)
    return groups


def _with_separators(model: Any, _: list[int], mm_features: list[Any]) -> Iterator[Group]:
    """Yield the frames of openPangu's videos, which have two tokens in between."""
    for modality, offset, frames, height, width in model.iter_mm_grid_thw(mm_features):
        if modality == "image" or frames < 1:
            yield offset, frames, height, width
            continue
        for frame in range(frames):
            yield offset + frame * (height * width + 2), 1, height, width


def _between_markers(
    model: Any, input_tokens: list[int], mm_features: list[Any]
) -> Iterator[Group]:
    """Yield the frames of Qwen3-VL's videos; where some have been pruned, one may hold several."""
    config = model.config
    qwen3_vl = import_module("vllm.model_executor.models.qwen3_vl").Qwen3VLForConditionalGeneration
    for offset, height, width, num_tokens in qwen3_vl._iter_mm_grid_hw(
        input_tokens,
        mm_features,
        video_token_id=config.video_token_id,
        vision_start_token_id=config.vision_start_token_id,
        vision_end_token_id=config.vision_end_token_id,
        spatial_merge_size=config.vision_config.spatial_merge_size,
    ):
        size = height * width
        if num_tokens % max(size, 1) or num_tokens < 0:
            raise ValueError(
                f"the frame at token {offset} has {num_tokens} tokens, which is no multiple of "
                f"the {size} of its grid ({height}, {width}); were some of them pruned?"
            )
        for start in range(offset, offset + num_tokens, max(size, 1)):
            yield start, 1, height, width


def _images(model: Any, _: list[int], mm_features: list[Any]) -> Iterator[Group]:
    merge = model.config.vision_config.spatial_merge_size
    for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
        if feature.modality != "image" or feature.data is None:
            raise ValueError(f"a feature must be an image with data, got a {feature.modality}")
        frames, height, width = feature.data["image_grid_thw"].data.tolist()
        if frames != 1:
            raise ValueError(f"an image must have one frame, got {frames}")
        yield feature.mm_position.offset, frames, height // merge, width // merge


# The classes that define the method, by module, and what answers for them. Others inherit it, or
# count tokens, and keep what they have.
_GROUPS: tuple[tuple[str, str, _Groups], ...] = (
    ("bailing_moe_v3_vl", "BailingMoeV3VLForConditionalGeneration", _images),
    ("cohere_compass", "CohereCompassForConditionalGeneration", _from_grids),
    ("cosmos3_edge", "Cosmos3EdgeForConditionalGeneration", _between_markers),
    ("ernie45_vl", "Ernie4_5_VLMoeForConditionalGeneration", _from_grids),
    ("glm4_1v", "Glm4vForConditionalGeneration", _from_grids),
    ("keye", "KeyeForConditionalGeneration", _from_grids),
    ("keye_vl1_5", "KeyeVL1_5ForConditionalGeneration", _from_grids),
    ("openpangu_vl", "OpenPanguVLForConditionalGeneration", _with_separators),
    ("paddleocr_vl", "PaddleOCRVLForConditionalGeneration", _from_grids),
    ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", _from_grids),
    ("qwen2_vl", "Qwen2VLForConditionalGeneration", _from_grids),
    ("qwen3_vl", "Qwen3VLForConditionalGeneration", _between_markers),
)
_OWN: tuple[tuple[str, str, _Answer], ...] = (
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
_CLASSES: dict[str, dict[str, _Answer]] = {
    f"vllm.model_executor.models.{module}": {name: answer}
    for module, name, answer in (
        *((module, name, _of_groups(groups_of)) for module, name, groups_of in _GROUPS),
        *_OWN,
    )
}
# vLLM's own methods, by class, while ours are in their place.
_originals: dict[type, Callable[..., Any]] = {}


def register() -> None:
    """Put vecrope in place of the methods of vLLM's models, those that will be imported later too.

    vLLM calls this in each of its processes. It imports no model, and a second call does nothing. A
    prompt that vecrope refuses is answered by vLLM's own method, as ever. With a vLLM of another
    release than 0.33 there is a warning, and nothing is changed.
    """
    version = import_module("vllm").__version__
    if version != _RELEASE and not version.startswith(f"{_RELEASE}."):
        _logger.warning(
            "vecrope leaves vLLM %s as it is: its answers are proven equal to those of vLLM %s. "
            "Install vllm==%s.*, or a vecrope whose changelog names your version.",
            version,
            _RELEASE,
            _RELEASE,
        )
        return
    if _finder in sys.meta_path:
        return
    sys.meta_path.insert(0, _finder)
    for name in _CLASSES:
        if name in sys.modules:
            _replace_methods(sys.modules[name])


def unregister() -> None:
    """Put vLLM's own methods back. Does nothing where `register` has done nothing."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    while _originals:
        owner, original = _originals.popitem()
        setattr(owner, _METHOD, original)


def _replace_methods(module: ModuleType) -> None:
    for name, answer in _CLASSES[module.__name__].items():
        owner = getattr(module, name, None)
        original = getattr(owner, "__dict__", {}).get(_METHOD)
        if owner is None or original is None:
            _logger.warning("vecrope finds no %s.%s in %s", name, _METHOD, module.__name__)
            continue
        _originals[owner] = original
        setattr(owner, _METHOD, _method(original, answer))


def _method(original: Callable[..., Any], answer: _Answer) -> Callable[..., Any]:
    @wraps(original)
    def method(self: Any, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        try:
            return answer(self, input_tokens, mm_features)
        except ValueError:
            own: tuple[Tensor, int] = original(self, input_tokens, mm_features)
            return own

    return method


class _AfterImport(MetaPathFinder):
    """Finds the modules of the classes as Python would, and lets `_replace_methods` follow."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _CLASSES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _replace_methods(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_finder = _AfterImport()
