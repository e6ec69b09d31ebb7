"""Families that vLLM alone numbers: frame after frame, with or without text between them."""

from __future__ import annotations

from vecrope.families.conventions import FRAMES_BY_IDS, VISION_PATHS, VLLM
from vecrope.families.family import Family


def _only_vllm(*, multi_frame_images: bool) -> Family:
    rules = {**VLLM, **FRAMES_BY_IDS, "multi_frame_images": multi_frame_images}
    return Family({"vllm": rules}, VISION_PATHS, {"spatial_merge_size": 2})


FAMILIES: dict[str, Family] = {
    "keye": _only_vllm(multi_frame_images=True),
    "keye_vl1_5": _only_vllm(multi_frame_images=True),
    "openpangu_vl": _only_vllm(multi_frame_images=False),
}
