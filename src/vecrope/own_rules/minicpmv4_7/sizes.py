"""The sizes of crops, in patches."""

from __future__ import annotations

from itertools import chain, filterfalse

from vecrope import checks
from vecrope.families.rules import MiniCPMV47
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

# Fields of the rule: the ids of markers.
IDS = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
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
        checks.check_integral(name, sizes)
        if sizes.dim() != 2 or sizes.shape[1] != 2:
            raise ValueError(
                f"{name} must have shape (num_{kind}_crops, 2), got {tuple(sizes.shape)}"
            )


def read_sizes(inputs: Inputs, rule: MiniCPMV47) -> list[list[tuple[int, int, int]]]:
    """Return the number, height and width in tokens of each crop of images, and of videos.

    Numbers are those of rows, first of images; rows of zeros are no crops.

    Raises:
        ValueError: for sizes that are neither sound nor zeros.
    """
    given, first, factor = [], 0, rule.downsample_factor
    # A range answers at once whether it holds a number.
    sound = range(factor, MAX_SIDE * factor, 1 if inputs.round_grid_sides else factor)
    for name in NAMES:
        sizes = getattr(inputs, name)
        rows = [] if sizes is None else sizes.tolist()
        unsound = {*filterfalse(sound.__contains__, {*chain.from_iterable(rows)})}
        for at, size in enumerate(rows) if unsound else ():
            if any(size) and not unsound.isdisjoint(size):
                what = "sides" if inputs.round_grid_sides else f"multiples of {factor}"
                raise ValueError(
                    f"{name} row {at} must be zeros, for no crop, or {what} from {factor} on and "
                    f"below {MAX_SIDE * factor}, as downsample_mode {rule.downsample_mode!r} asks, "
                    f"got {tuple(size)}"
                )
        numbered = enumerate(rows, first)
        given.append([(at, h // factor, w // factor) for at, (h, w) in numbered if h or w])
        first += len(rows)
    return given
