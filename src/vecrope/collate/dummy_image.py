"""The smallest picture, for batches without any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vecrope import checks
from vecrope.collate.fields import IGNORED_LABEL
from vecrope.families.rules import Hunyuan, OmniRule
from vecrope.spec import MRopeSpec


def dummy_image(
    spec: MRopeSpec,
    pixel_features: int | Sequence[int],
    *,
    start_token_ids: Sequence[int] = (),
    end_token_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """Return one smallest picture as a sample, for `vecrope.collate(dummy_image=...)`.

    Under FSDP and ZeRO-3 every rank must run the vision tower, or the others wait for it. A batch
    without pictures then takes this one behind its last token, where no token attends to it and no
    label asks for it.

    Args:
        spec: of a family of the shared rule, of hunyuan_vl, or of the omni families. Of glm_image
            and minicpmv4_7 it cannot be made: the error says why.
        pixel_features: the size of a row of `pixel_values`, or its shape.
        start_token_ids: ids to put before the picture, where the model asks for them.
        end_token_ids: ids to put behind it.

    Returns:
        `input_ids`, `labels`, `mm_token_type_ids` and `moe_mm_token_type_ids`, (1, k) int64;
        `image_grid_thw`, (1, 3); `pixel_values`, zeros.

    Raises:
        TypeError: for sizes that are no ints.
        ValueError: for a family whose pictures are described otherwise.

    Example:
        >>> import vecrope
        >>> spec = vecrope.MRopeSpec.for_model("qwen2_vl", convention="transformers")
        >>> dummy = vecrope.dummy_image(spec, 1176)
        >>> dummy["image_grid_thw"], dummy["pixel_values"].shape
        (tensor([[1, 2, 2]]), torch.Size([4, 1176]))
    """
    if not isinstance(spec, MRopeSpec):
        raise TypeError(f"spec must be an MRopeSpec, got {type(spec).__name__}")
    if spec.image_token_id is None or not isinstance(spec.own_rule, Hunyuan | OmniRule | None):
        why = {
            "glm_image": "the first grids of a sample are of pictures in it, the others of those "
            "to be generated, so that a picture behind the last token has no place among them",
            "minicpmv4_7": "its processor decides on the size and the shape of the least picture",
        }.get(spec.model_type, "its pictures are described otherwise")
        raise ValueError(f"dummy_image does not take {spec.model_type}: {why}")
    shape = (pixel_features,) if isinstance(pixel_features, int) else tuple(pixel_features)
    for size in shape:
        checks.check_int("pixel_features", size, 1)
    side = spec.spatial_merge_size
    # A line ends with a token of its own in hunyuan_vl, and the picture has one at both ends.
    number = 4 if isinstance(spec.own_rule, Hunyuan) else 1
    types = [0] * len(start_token_ids) + [1] * number + [0] * len(end_token_ids)
    ids = [*start_token_ids, *[spec.image_token_id] * number, *end_token_ids]
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.full((1, len(ids)), IGNORED_LABEL),
        "mm_token_type_ids": torch.tensor([types]),
        "moe_mm_token_type_ids": torch.tensor([types]),
        "image_grid_thw": torch.tensor([[1, side, side]]),
        "pixel_values": torch.zeros((side * side, *shape)),
    }
