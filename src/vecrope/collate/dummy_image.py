"""The smallest picture, for batches without any."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from vecrope import checks
from vecrope.collate.fields import IGNORED_LABEL
from vecrope.collate.read import read_token_ids
from vecrope.families.rules import Bailing, GlmImage, Hunyuan, Isaac, MiniCPMV47
from vecrope.spec import MRopeSpec


def dummy_image(
    spec: MRopeSpec,
    pixel_features: int | Sequence[int],
    *,
    start_token_ids: Sequence[int] = (),
    end_token_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """Return a sample with the smallest possible picture, for `vecrope.collate(dummy_image=...)`.

    Under FSDP and ZeRO-3 every rank must run the vision tower, or the others wait for it. `collate`
    puts this picture after the last token of a batch without pictures, where no token attends to it
    and no label is predicted from it.

    Args:
        spec: of a family that transformers has. For glm_image there is a second grid, of a picture
            to be generated, because transformers takes the last grid of a sample for one.
        pixel_features: the size of a row of `pixel_values`, or its shape. For minicpmv4_7, whose
            patches lie side by side, the channels and the rows of a patch, such as `(3, 14)`. A
            picture has fewer than 2**31 numbers.
        start_token_ids: ids to put before the picture, if the model needs any. The omni families
            need a marker on each side of an image.
        end_token_ids: ids to put after the picture.

    Returns:
        `input_ids`, `labels`, `mm_token_type_ids` and `moe_mm_token_type_ids`, (1, k) int64;
        `image_grid_thw`, (1, 3), or `target_sizes`, (1, 2); `pixel_values`, zeros.

    Raises:
        TypeError: for sizes that are no ints.
        ValueError: for a family that transformers does not have, and for sizes that no patch has.

    Example:
        >>> import vecrope
        >>> spec = vecrope.MRopeSpec.for_model("qwen2_vl", convention="transformers")
        >>> dummy = vecrope.dummy_image(spec, 1176)
        >>> dummy["image_grid_thw"], dummy["pixel_values"].shape
        (tensor([[1, 2, 2]]), torch.Size([4, 1176]))
    """
    checks.check_spec(spec)
    rule = spec.own_rule
    if spec.image_token_id is None or isinstance(rule, Bailing | Isaac):
        raise ValueError(
            f"dummy_image does not take {spec.model_type}: transformers has no model of its rule"
        )
    shape = tuple(pixel_features) if isinstance(pixel_features, Sequence) else (pixel_features,)
    for size in shape or (None,):
        checks.check_int("pixel_features", size, 1)
    # A line ends with a token of its own in hunyuan_vl, and the picture has one at both ends.
    number = 4 if isinstance(rule, Hunyuan) else 1
    start = read_token_ids("start_token_ids", start_token_ids)
    end = read_token_ids("end_token_ids", end_token_ids)
    side = spec.spatial_merge_size
    grid = [[1, side, side]] * (2 if isinstance(rule, GlmImage) else 1)
    sizes, pixels = {"image_grid_thw": grid}, (side * side, *shape)
    if isinstance(rule, GlmImage):
        start, end = [*start, rule.image_start_token_id], [rule.image_end_token_id, *end]
    if isinstance(rule, MiniCPMV47):
        if len(shape) != 2:
            raise ValueError(
                f"pixel_features of {spec.model_type} must be (channels, rows of a patch), got "
                f"{pixel_features!r}"
            )
        start, end = [*start, rule.image_start_id], [rule.image_end_id, *end]
        side = rule.downsample_factor
        sizes, pixels = {"target_sizes": [[side, side]]}, (1, *shape, side * side * shape[1])
    if prod(pixels) >= 2**31:
        raise ValueError(
            f"pixel_features must make a picture of fewer than 2**31 numbers, got "
            f"{pixel_features!r}, which makes {prod(pixels)}"
        )
    types = [0] * len(start) + [1] * number + [0] * len(end)
    ids = [*start, *[spec.image_token_id] * number, *end]
    return {
        "input_ids": torch.tensor([ids], device="cpu"),
        "labels": torch.full((1, len(ids)), IGNORED_LABEL, device="cpu"),
        "mm_token_type_ids": torch.tensor([types], device="cpu"),
        "moe_mm_token_type_ids": torch.tensor([types], device="cpu"),
        **{name: torch.tensor(size, device="cpu") for name, size in sizes.items()},
        "pixel_values": torch.zeros(pixels, device="cpu"),
    }
