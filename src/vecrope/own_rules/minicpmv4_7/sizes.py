"""What the sizes of crops must be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vecrope import checks
from vecrope.families.rules import MiniCPMV47
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

NAMES = ("target_sizes", "target_sizes_videos")
# Sides from which a crop is refused, in tokens.
MAX_SIDE = 2**16
# (extent - 1) * (count - 1) from which the order of float32 operations decides on more than ties
# where a thumbnail is spread.
LIMIT = 2**20


def check_shapes(inputs: Inputs, spec: MRopeSpec) -> None:
    """Check types, shapes and dtypes; reads no value of any tensor."""
    for name in ("image_grid_thw", "video_grid_thw"):
        if getattr(inputs, name) is not None:
            raise ValueError(f"{name} must be None: {spec.model_type} takes {' and '.join(NAMES)}")
    for name, kind in zip(NAMES, ("image", "video"), strict=True):
        sizes = getattr(inputs, name)
        if sizes is None:
            continue
        checks.check_tensor(name, sizes)
        if sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool:
            raise TypeError(f"{name} must be of an integer dtype, got {sizes.dtype}")
        if sizes.dim() != 2 or sizes.shape[1] != 2:
            raise ValueError(
                f"{name} must have shape (num_{kind}_crops, 2), got {tuple(sizes.shape)}"
            )


def check_sizes(
    sizes: Sequence[Sequence[Sequence[int]]], rule: MiniCPMV47, *, round_grid_sides: bool
) -> None:
    """Check that every size is all zeros, or positive and divisible by the factor.

    If `round_grid_sides` it is enough that no side is smaller.
    """
    factor = rule.downsample_factor
    for name, rows in zip(NAMES, sizes, strict=True):
        for at, size in enumerate(rows):
            if not any(size):
                continue
            if min(size) <= 0:
                what = "be positive, or all zeros for no crop"
            elif max(size) >= MAX_SIDE * factor:
                what = f"have a height and width below {MAX_SIDE * factor}"
            elif min(size) < factor or (not round_grid_sides and any(s % factor for s in size)):
                how = "of at least" if round_grid_sides else "divisible by"
                what = (
                    f"have a height and width {how} {factor}, as downsample_mode "
                    f"{rule.downsample_mode!r} asks"
                )
            else:
                continue
            raise ValueError(f"{name} row {at} must {what}, got {tuple(size)}")


def are_unsound(sizes: Tensor, rule: MiniCPMV47, *, round_grid_sides: bool) -> Tensor:
    """Return (G,) bool, of sizes (G, 2): whether `check_sizes` refuses each."""
    factor = rule.downsample_factor
    given = (sizes != 0).any(1)
    odd = sizes < factor if round_grid_sides else sizes % factor != 0
    return given & ((sizes <= 0) | (sizes >= MAX_SIDE * factor) | odd).any(1)
