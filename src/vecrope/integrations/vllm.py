"""A general plugin of vLLM, by which its models' `get_mrope_input_positions` are vecrope's.

vLLM calls `register` through the entry point `vecrope` of the group `vllm.general_plugins`. What
the features of a prompt say is read by the models' own generators; only the positions are computed
here. Importing this module does not import vLLM.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vecrope.modality import IMAGE, VIDEO
from vecrope.placeholders import get_rope_index_from_placeholders
from vecrope.spec import MRopeSpec

_logger = logging.getLogger(__name__)

# What the answers are proven equal to.
_RELEASE = "0.33"
_METHOD = "get_mrope_input_positions"

# One grid of positions (an image, a video that is a block, or a frame): the index of its first
# token, frames, rows and columns in tokens, and positions from one frame to the next; 1 if left
# out.
Group = tuple[int, int, int, int] | tuple[int, int, int, int, float]
_Groups = Callable[[Any, list[int], list[Any]], Iterable[Group]]

# Groups are in tokens, their paces in positions; rounded as vLLM rounds them, in float64.
_SPEC = MRopeSpec.for_model(
    "qwen2_5_vl",
    convention="vllm",
    spatial_merge_size=1,
    tokens_per_second=1.0,
    multi_frame_images=True,
)


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
        groups_of = _CLASSES.get(owner.__module__, {}).get(owner.__name__)
        if groups_of is not None:
            return positions_of_groups(
                len(input_tokens), list(groups_of(model, input_tokens, mm_features))
            )
    known = ", ".join(name for classes in _CLASSES.values() for name in classes)
    raise TypeError(f"model must be one of {known} of vLLM, got {type(model).__name__}")


def positions_of_groups(num_tokens: int, groups: Sequence[Group]) -> tuple[Tensor, int]:
    """Return the M-RoPE positions of a prompt of text and of groups.

    Args:
        num_tokens: tokens of the prompt, N, at least one.
        groups: tuples of offset, frames, height, width and, for what is spaced in time, positions
            from one frame to the next, whose multiples are rounded down. Ascending, and none
            reaches into the next.

    Returns:
        (3, N) int64 on the CPU, and the row's largest position plus one, less N.

    Raises:
        ValueError: for groups that do not fit the prompt, or no tokens.

    Example:
        >>> from vecrope.integrations.vllm import positions_of_groups
        >>> position_ids, delta = positions_of_groups(6, [(1, 2, 1, 2, 1.5)])
        >>> position_ids
        tensor([[0, 1, 1, 2, 2, 3],
                [0, 1, 1, 1, 1, 3],
                [0, 1, 2, 1, 2, 3]])
        >>> delta
        -2
    """
    if num_tokens < 1:
        raise ValueError(f"a prompt must have one token at least, got {num_tokens}")
    if not groups:
        return torch.arange(num_tokens).repeat(3, 1), 0
    table = torch.tensor([group[:4] for group in groups])
    grids = table[:, 1:]
    modalities, seconds, videos = torch.full((len(groups),), IMAGE), None, None
    # To be numbered as images, whose frames are one position apart, costs less.
    paces = [group[4] if len(group) == 5 and group[1] > 1 else 1.0 for group in groups]
    if any(pace != 1.0 for pace in paces):
        pace = torch.tensor(paces, dtype=torch.float64)
        timed = pace != 1.0
        modalities.masked_fill_(timed, VIDEO)
        grids, videos, seconds = grids[~timed], grids[timed], pace[timed]
    position_ids, rope_deltas = get_rope_index_from_placeholders(
        num_tokens,
        _SPEC,
        offsets=table[:, 0],
        lengths=table[:, 1:].prod(1),
        modalities=modalities,
        image_grid_thw=grids,
        video_grid_thw=videos,
        second_per_grid_ts=seconds,
    )
    return position_ids, int(rope_deltas)


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


# The classes that define the method, by module, and how their groups are read. Others inherit it,
# count tokens, or follow a rule of their own, and keep what they have.
_CLASSES: dict[str, dict[str, _Groups]] = {
    f"vllm.model_executor.models.{module}": {name: groups_of}
    for module, name, groups_of in (
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
    for name, groups_of in _CLASSES[module.__name__].items():
        owner = getattr(module, name, None)
        original = getattr(owner, "__dict__", {}).get(_METHOD)
        if owner is None or original is None:
            _logger.warning("vecrope finds no %s.%s in %s", name, _METHOD, module.__name__)
            continue
        _originals[owner] = original
        setattr(owner, _METHOD, _method(original, groups_of))


def _method(original: Callable[..., Any], groups_of: _Groups) -> Callable[..., Any]:
    @wraps(original)
    def method(self: Any, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        try:
            groups = list(groups_of(self, input_tokens, mm_features))
            return positions_of_groups(len(input_tokens), groups)
        except ValueError:
            answer: tuple[Tensor, int] = original(self, input_tokens, mm_features)
            return answer

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
