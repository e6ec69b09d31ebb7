"""What sizes of crops and the crops of a prompt must satisfy, and where they do not."""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.checks import check_tensor
from vecrope.core.modality import VIDEO
from vecrope.core.stream import Stream
from vecrope.families.rules import MiniCPMV47
from vecrope.inputs import Inputs
from vecrope.own_rules.minicpmv4_7.crops import MAX_SIDE, Crops, Markers, Tokens, next_index
from vecrope.own_rules.minicpmv4_7.pictures import Pictures
from vecrope.own_rules.minicpmv4_7.rounded_linspace import LIMIT
from vecrope.spec import MRopeSpec

_NAMES = ("target_sizes", "target_sizes_videos")
_KINDS = ("image", "video")


class Faults(NamedTuple):
    """What contradicts itself, part by part; bool."""

    sizes: Tensor  # (G,)
    markers: Tensor  # (N,)
    unannounced: Tensor  # (C,) crops with no token before them
    misfits: Tensor  # (C,) crops that hold other numbers of tokens than their sizes need
    stretched: Tensor  # (C,) pictures whose thumbnails no rounding would fix on their canvases
    miscounted: Tensor  # 0-d

    def any(self) -> Tensor:
        """Return, as a 0-d bool, whether there are any."""
        return torch.stack([part.any() for part in self]).any()


def check_shapes(inputs: Inputs, spec: MRopeSpec) -> None:
    """Check types, shapes and dtypes; reads no value of any tensor."""
    for name in ("image_grid_thw", "video_grid_thw"):
        if getattr(inputs, name) is not None:
            raise ValueError(f"{name} must be None: {spec.model_type} takes {' and '.join(_NAMES)}")
    for name, kind in zip(_NAMES, _KINDS, strict=True):
        sizes = getattr(inputs, name)
        if sizes is None:
            continue
        check_tensor(name, sizes)
        if sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool:
            raise TypeError(f"{name} must be of an integer dtype, got {sizes.dtype}")
        if sizes.dim() != 2 or sizes.shape[1] != 2:
            raise ValueError(
                f"{name} must have shape (num_{kind}_crops, 2), got {tuple(sizes.shape)}"
            )


def check_sizes(
    images: Tensor, videos: Tensor, rule: MiniCPMV47, *, round_grid_sides: bool = False
) -> None:
    """Check that every size is all zeros, or positive and divisible by the factor; synchronises.

    If `round_grid_sides` it is enough that no side is smaller.
    """
    factor = rule.downsample_factor
    for name, sizes in zip(_NAMES, (images, videos), strict=True):
        for at in _unsound(sizes, factor, round_grid_sides).nonzero()[:1, 0].tolist():
            size = tuple(sizes[at].tolist())
            if min(size) <= 0:
                what = "be positive, or all zeros for no crop"
            elif max(size) >= MAX_SIDE * factor:
                what = f"have a height and width below {MAX_SIDE * factor}"
            else:
                how = "of at least" if round_grid_sides else "divisible by"
                what = (
                    f"have a height and width {how} {factor}, as downsample_mode "
                    f"{rule.downsample_mode!r} asks"
                )
            raise ValueError(f"{name} row {at} must {what}, got {size}")


def check_none_left_over(sizes: Tensor) -> None:
    """Check that there are no sizes, where there are no tokens; synchronises."""
    count = int((sizes != 0).any(1).sum())
    if count:
        raise ValueError(f"there are sizes of {count} crops, input_ids hold no tokens")


def find_faults(
    tokens: Tokens,
    crops: Crops,
    pictures: Pictures,
    sizes: Tensor,
    rule: MiniCPMV47,
    *,
    allow_unused_grids: bool,
    round_grid_sides: bool,
) -> Faults:
    """Find all that contradicts itself; does not synchronise.

    If `allow_unused_grids`, sizes may be left over; `round_grid_sides` as for `check_sizes`.
    """
    count = (sizes != 0).any(1).sum()
    used = crops.starts < tokens.number
    follows = crops.rows == pad(crops.rows[:-1], (1, 0), value=-1)
    previous_ends = torch.where(follows, pad(crops.ends[:-1], (1, 0)), tokens.bounds[crops.rows])
    sliced = pictures.slices > 0
    last_rows = crops.height[pictures.thumbnails] - 1, crops.width[pictures.thumbnails] - 1
    last_places = pictures.height - 1, pictures.width - 1
    stretched = torch.stack([a * b >= LIMIT for a, b in zip(last_rows, last_places, strict=True)])
    return Faults(
        _unsound(sizes, rule.downsample_factor, round_grid_sides),
        _misplaced(tokens, crops.markers),
        used & (crops.starts <= previous_ends),
        used & (crops.ends - crops.starts != crops.height * crops.width),
        sliced & stretched.any(0),
        crops.total > count if allow_unused_grids else crops.total != count,
    )


def raise_fault(
    faults: Faults,
    stream: Stream,
    tokens: Tokens,
    crops: Crops,
    pictures: Pictures,
    images: Tensor,
    videos: Tensor,
) -> NoReturn:
    """Raise the ValueError that describes the first fault, where sizes alone are sound."""
    for at in faults.markers.nonzero()[:1, 0].tolist():
        assert crops.markers is not None
        _raise_misplaced(at, stream, tokens, crops.markers)
    for crop in faults.unannounced.nonzero()[:1, 0].tolist():
        start = int(crops.starts[crop])
        first = start == int(tokens.bounds[crops.rows[crop]])
        raise ValueError(
            f"{_place(start, stream, tokens)}: a crop must follow a marker, it is "
            + ("at the start of its row" if first else "right after the crop before")
        )
    for crop in faults.misfits.nonzero()[:1, 0].tolist():
        _raise_misfit(crop, stream, tokens, crops, images, videos)
    if bool(faults.miscounted):
        _raise_left_over(stream, tokens, crops, images, videos)
    picture = int(faults.stretched.nonzero()[0])
    thumbnail = pictures.thumbnails[picture]
    size = int(crops.height[thumbnail]), int(crops.width[thumbnail])
    canvas = int(pictures.height[picture]), int(pictures.width[picture])
    raise ValueError(
        f"{_place(int(pictures.starts[picture]), stream, tokens)}: a thumbnail of {size} tokens "
        f"cannot be spread over slices of {canvas} in all; the product of both, less one each, "
        f"must be below {LIMIT}"
    )


def _unsound(sizes: Tensor, factor: int, round_grid_sides: bool) -> Tensor:
    partial = (sizes <= 0).any(1) & (sizes != 0).any(1)
    uneven = (sizes < factor) & (sizes != 0) if round_grid_sides else sizes % factor != 0
    return partial | uneven.any(1) | (sizes >= MAX_SIDE * factor).any(1)


def _misplaced(tokens: Tokens, markers: Markers | None) -> Tensor:
    """Return (N,) bool: an upstream would pair this marker with one that is not next to it.

    Surplus markers after the last pair of a row are paired with none.
    """
    if markers is None:
        return torch.zeros_like(tokens.ids, dtype=torch.bool)
    row_ends = tokens.bounds[tokens.rows + 1]
    closed_later = next_index(markers.closes)[1:] < row_ends
    opened_later = next_index(markers.opens)[1:] < row_ends
    empty = markers.closes & pad(markers.opens[:-1], (1, 0)) & markers.opened
    nested = markers.opens & markers.opened & closed_later
    unopened = markers.closes & ~markers.opened & opened_later
    return (nested | unopened | empty) & markers.apply


def _raise_misplaced(at: int, stream: Stream, tokens: Tokens, markers: Markers) -> NoReturn:
    if bool(markers.opens[at]):
        what = "opens a crop inside of another"
    elif bool(markers.opened[at]):
        what = "closes a crop that holds no token"
    else:
        what = "closes a crop that none opens"
    raise ValueError(f"{_place(at, stream, tokens)}: the marker {int(tokens.ids[at])} {what}")


def _raise_misfit(
    crop: int, stream: Stream, tokens: Tokens, crops: Crops, images: Tensor, videos: Tensor
) -> NoReturn:
    start = int(crops.starts[crop])
    where = _place(start, stream, tokens)
    found = int(crops.ends[crop]) - start
    row = int(crops.size_rows[crop])
    if row == images.shape[0] + videos.shape[0]:
        thumbnail = int((crops.pictures == crops.pictures[crop]).nonzero()[0])
        kind = int(crops.kinds[thumbnail] == VIDEO)
        sizes = (images, videos)[kind]
        raise ValueError(
            f"{where}: a crop of {_KINDS[kind]}s is beyond the last size: {_NAMES[kind]} has "
            f"{int((sizes != 0).any(1).sum())}, and none is left"
        )
    kind = int(row >= images.shape[0])
    row -= kind * images.shape[0]
    raise ValueError(
        f"{where}: {_NAMES[kind]} row {row} {tuple((images, videos)[kind][row].tolist())} needs "
        f"{int(crops.height[crop] * crops.width[crop])} tokens, got {found} in one run; was the "
        f"prompt truncated inside the {_KINDS[kind]}?"
    )


def _raise_left_over(
    stream: Stream, tokens: Tokens, crops: Crops, images: Tensor, videos: Tensor
) -> NoReturn:
    markers = crops.markers
    if markers is not None:
        # The last marker of a row opens a crop.
        later = next_index(markers.opens | markers.closes)[1:] < tokens.bounds[tokens.rows + 1]
        for at in (markers.opens & ~later).nonzero()[:1, 0].tolist():
            raise ValueError(
                f"{_place(at, stream, tokens)}: the marker {int(tokens.ids[at])} opens a crop that "
                "none closes; was the prompt truncated inside the crop?"
            )
    total = int(crops.total)
    sized = torch.cat(((images != 0).any(1), (videos != 0).any(1)))
    expected = int(sized.sum())
    assert total < expected
    taken = torch.zeros_like(sized).index_fill(
        0, crops.size_rows[crops.starts < tokens.number], True
    )
    row = int((sized & ~taken).nonzero()[0])
    kind = int(row >= images.shape[0])
    row -= kind * images.shape[0]
    raise ValueError(
        f"{_NAMES[kind]} row {row} {tuple((images, videos)[kind][row].tolist())} is left over: "
        f"expected {expected} crops in the batch, one for each size, got {total}"
    )


def _place(at: int, stream: Stream, tokens: Tokens) -> str:
    """Say where in the input a token is that has been moved."""
    row = int(tokens.rows[at])
    original = int((tokens.origin == at).nonzero()[0])
    return f"row {row}, token {original - int(stream.row_bounds[row])}"
