"""SGLang's positions of requests with images alone, which it makes from the images' places."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vecrope.forms.eager import Group, positions_of_groups

MODULE = "sglang.srt.multimodal.processors.qwen_vl"
OWNER = "QwenVLImageProcessor"
METHOD = "_compute_image_only_mrope_positions_from_offsets"
# A method of the class that it calls.
HELPERS = ("_as_grid_batch",)
_FROM_0_5_13 = frozenset(
    {"qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "intern_s2_preview"}
)
_FROM_0_5_18 = _FROM_0_5_13 | {"interns2_mobius"}
_FROM_0_5_20 = _FROM_0_5_18 | {"qwen4_exp", "cosmos3_omni"}
# By the fingerprint of the method and its helper, the model types that it numbers.
MODEL_TYPES: dict[str, frozenset[str]] = {
    "ab1fcd01ba0d162c": _FROM_0_5_13,
    "f0e1c85feb774e18": _FROM_0_5_13,
    "d4fbb0de94b0825c": _FROM_0_5_18,
    "f3bd26e0c1e84dfd": _FROM_0_5_20,
}


def replacement(original: Callable[..., Any], model_types: frozenset[str]) -> Callable[..., Any]:
    """Return the method that stands for SGLang's own: it answers, or has SGLang's own answer.

    What SGLang's method has no positions for, other model types among it, is left to it, and so is
    a device other than the CPU.
    """

    @functools.wraps(original)
    def method(
        self: Any, input_len: int, mm_items: list[Any], dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        if self.model_type in model_types and torch.device(device).type == "cpu":
            groups = _groups(self, input_len, mm_items)
            if groups:
                position_ids, delta = positions_of_groups(input_len, groups, dtype=dtype)
                return position_ids.unsqueeze(1), torch.tensor([[delta]], dtype=dtype)
        own: tuple[Tensor, Tensor] | None = original(
            self, input_len=input_len, mm_items=mm_items, dtype=dtype, device=device
        )
        return own

    return method


def _groups(processor: Any, input_len: int, mm_items: list[Any]) -> list[Group]:
    """Return where each image stands, and its grid in tokens; none if one of them does not fit."""
    if not all(
        item.is_image() and item.offsets is not None and len(item.offsets) == 1 for item in mm_items
    ):
        return []
    merge = getattr(processor, "_spatial_merge_size", None)
    if merge is None:  # before 0.5.16
        merge = processor.hf_config.vision_config.spatial_merge_size
    groups: list[Group] = []
    end = 0
    for item in sorted(mm_items, key=lambda item: item.offsets[0][0]):
        first, last = item.offsets[0]
        grids = processor._as_grid_batch(item.model_specific_data.get("image_grid_thw"))
        if grids is None or grids.shape[0] != 1:
            return []
        t, h, w = grids[0].tolist()
        height, width = h // merge, w // merge
        fits = end <= first and last < input_len and t * height * width == last - first + 1
        if not fits or min(t, height, width) < 1:
            return []
        groups.append((first, t, height, width))
        end = last + 1
    return groups
