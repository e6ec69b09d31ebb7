"""What the features of a prompt say, by model: where each group begins, and its size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from vecrope.forms.eager import Group


def has_groups(mm_features: list[Any], number: int, *, separate_frames: bool) -> bool:
    """Say whether features describe so many groups: images, frames, video blocks.

    Args:
        mm_features: of a prompt.
        number: of groups that are needed.
        separate_frames: whether each frame of a video is a group.
    """
    missing = number - len(mm_features)
    if missing > 0 and separate_frames:
        for feature in mm_features:
            if feature.modality == "video" and feature.data is not None:
                grid = feature.data["video_grid_thw"].data.tolist()
                rows = grid if isinstance(grid[0], list) else [grid]
                missing -= sum(frames for frames, _, _ in rows) - 1
    return missing <= 0


def from_grids(model: Any, _: list[int], mm_features: list[Any]) -> Iterable[Group]:
    """Return what the model itself yields."""
    groups: Iterable[Group] = model.iter_mm_grid_thw(mm_features)
    return groups


def with_separators(model: Any, _: list[int], mm_features: list[Any]) -> Iterator[Group]:
    """Yield the frames of openPangu's videos, which have two tokens in between."""
    for modality, offset, frames, height, width in model.iter_mm_grid_thw(mm_features):
        if modality == "image" or frames < 1:
            yield offset, frames, height, width
            continue
        for frame in range(frames):
            yield offset + frame * (height * width + 2), 1, height, width


def between_markers(model: Any, input_tokens: list[int], mm_features: list[Any]) -> Iterator[Group]:
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


def images(model: Any, _: list[int], mm_features: list[Any]) -> Iterator[Group]:
    """Yield the images of a model whose videos have no positions of their own."""
    merge = model.config.vision_config.spatial_merge_size
    for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
        if feature.modality != "image" or feature.data is None:
            raise ValueError(f"a feature must be an image with data, got a {feature.modality}")
        frames, height, width = feature.data["image_grid_thw"].data.tolist()
        if frames != 1:
            raise ValueError(f"an image must have one frame, got {frames}")
        yield feature.mm_position.offset, frames, height // merge, width // merge
