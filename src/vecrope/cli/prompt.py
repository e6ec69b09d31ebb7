"""What the command line looks at: one prompt, and how its tokens are to be read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vecrope.spec import MRopeSpec


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

    def arguments(self) -> dict[str, Tensor | None]:
        """Return the tensors, by the names that `get_rope_index` and the reference give them."""
        return {
            "attention_mask": self.attention_mask,
            "mm_token_type_ids": self.mm_token_type_ids,
            "image_grid_thw": self.image_grid_thw,
            "video_grid_thw": self.video_grid_thw,
        }

    def lengths(self) -> list[int]:
        """Return the length of each row that its delta is measured against."""
        batch, seq_len = self.input_ids.shape
        if self.attention_mask is None or self.spec.delta_length == "padded":
            return [seq_len] * batch
        lengths: list[int] = self.attention_mask.sum(1, dtype=torch.int64).tolist()
        return lengths


def by(*sides: object) -> str:
    """Return the sides of a grid as it is read aloud."""
    return " × ".join(map(str, sides))  # noqa: RUF001 - the right sign for a grid


def image_markers(spec: MRopeSpec) -> tuple[int, int]:
    """Return the ids before and after an image's placeholders, in the family's vocabulary."""
    return (59256, 59257) if spec.model_type == "glm_ocr" else (151339, 151340)
