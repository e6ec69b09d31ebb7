"""What the command line looks at: one prompt, and how its tokens are to be read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vecrope.spec import MRopeSpec

_QWEN = (151652, 151653)
_QWEN_LATER = (248053, 248054)
# Of the families that differ from GLM-4V.
_IMAGE_MARKERS = {
    "glm_ocr": (59256, 59257),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "cosmos3_omni": _QWEN,
    "qwen3_5": _QWEN_LATER,
    "qwen3_5_moe": _QWEN_LATER,
    "qwen4_exp": _QWEN_LATER,
    "cosmos3_edge": (20, 21),
    "cohere_compass": (255028, 255029),
    "paddleocr_vl": (101305, 101306),
    "ernie4_5_vl_moe": (101304, 101305),
}


class CommandError(Exception):
    """A fault of the arguments or of a file, said in one line."""


@dataclass(frozen=True)
class Prompt:
    """A batch of B rows of T tokens, as `get_rope_index` takes it, and what it is called."""

    title: str
    spec: MRopeSpec
    input_ids: Tensor  # (B, T) int64, B and T at least 1
    attention_mask: Tensor | None = None
    mm_token_type_ids: Tensor | None = None
    image_grid_thw: Tensor | None = None
    video_grid_thw: Tensor | None = None
    second_per_grid_ts: Tensor | None = None  # (num_videos,) float32

    def arguments(self) -> dict[str, Tensor | None]:
        """Return the tensors, by the names that `get_rope_index` and the reference give them."""
        return {
            "attention_mask": self.attention_mask,
            "mm_token_type_ids": self.mm_token_type_ids,
            "image_grid_thw": self.image_grid_thw,
            "video_grid_thw": self.video_grid_thw,
            "second_per_grid_ts": self.second_per_grid_ts,
        }

    def lengths(self) -> list[int]:
        """Return the length of each row that its delta is measured against."""
        batch, seq_len = self.input_ids.shape
        spec = self.spec
        unmasked = self.attention_mask is None or spec.mask_rule == "ignore"
        if unmasked or spec.delta_length == "padded":
            return [seq_len] * batch
        assert self.attention_mask is not None
        lengths: list[int] = self.attention_mask.sum(1, dtype=torch.int64).tolist()
        return lengths


def by(*sides: object) -> str:
    """Return the sides of a grid as it is read aloud."""
    return " × ".join(map(str, sides))  # noqa: RUF001 - the right sign for a grid


def image_markers(spec: MRopeSpec) -> tuple[int, int]:
    """Return the ids before and after an image's placeholders, in the family's vocabulary."""
    if spec.vision_start_token_id is not None:
        return spec.vision_start_token_id, spec.vision_start_token_id + 1
    return _IMAGE_MARKERS.get(spec.model_type, (151339, 151340))
