"""What all samples of a batch must have of one kind, or none of them."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope.collate import fields
from vecrope.collate.samples import Samples

# What a sample that has one of these must have too, if others do.
_NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("labels", "mm_token_type_ids", "moe_mm_token_type_ids"), ("input_ids",)),
    **dict.fromkeys(fields.SECONDS, ("video_grid_thw",)),
    **{fields.PIXELS[kind]: (fields.GRIDS[kind], fields.CROPS[kind]) for kind in fields.PIXELS},
    **dict.fromkeys(fields.AUDIO, ("feature_attention_mask", "audio_seqlens")),
    "position_ids": ("input_ids",),
}


def check_alike(samples: Samples) -> None:
    """Check that what all samples must have, or none, is so, and that it can be joined."""
    media = samples.media
    columns = {**samples.tokens, **media, "position_ids": samples.numbered}
    for name, others in _NEEDED.items():
        column = columns.get(name, {})
        if len(column) in (0, len(samples)):
            continue
        needed = {index for other in others for index in columns.get(other, ())}
        if lacking := needed - column.keys():
            raise ValueError(
                f"{samples.names[min(lacking)]} has no {name}, {samples.names[min(column)]} has: "
                "all samples must have them, or none"
            )
    for name in fields.SECONDS:
        _check_types(samples, name)
    by_crops = any(name in media for name in fields.CROPS.values())
    for name in fields.PIXELS.values():
        _check_shapes(samples, name, slice(-1) if by_crops else slice(1, None))
    _check_shapes(samples, "input_features", slice(1, 2))


def check_masks(samples: Samples, joined: Tensor, *, packed: bool) -> None:
    """Check that masks hold 0 or 1, and where samples are packed, that they mask nothing.

    Args:
        samples: as they were read.
        joined: all of their masks, and zeros at padding.
        packed: whether samples are packed.
    """
    low, high = (int(value) for value in joined.aminmax())
    if packed <= low and high <= 1:
        return
    masks = samples.tokens["attention_mask"].items()
    ranges = ((index, *map(int, mask.aminmax())) for index, mask in masks)
    index, low, high = next(each for each in ranges if each[1] < packed or each[2] > 1)
    who = samples.names[index]
    if low < 0 or high > 1:
        raise ValueError(
            f"attention_mask of {who} must hold 0 or 1, got {high} at most and {low} at least"
        )
    raise ValueError(
        f"attention_mask of {who} must be 1 at every token to be packed: leave padding out of the "
        "sample"
    )


def _check_types(samples: Samples, name: str) -> None:
    """Check that seconds are tensors of one dtype in all samples, or lists in all.

    Upstreams round each of them in its own way.
    """
    kinds: dict[torch.dtype | None, int] = {}
    for index, seconds in samples.media.get(name, {}).items():
        kinds.setdefault(seconds.dtype if isinstance(seconds, Tensor) else None, index)
    if len(kinds) > 1:
        got = [
            f"{'a list' if dtype is None else f'a tensor of {dtype}'} in {samples.names[index]}"
            for dtype, index in kinds.items()
        ]
        raise TypeError(
            f"{name} must be tensors of one dtype in all samples, or lists in all; got {got[0]} "
            f"and {got[1]}"
        )


def _check_shapes(samples: Samples, name: str, fixed: slice) -> None:
    """Check that pixels or features are alike but for the dimension that joins them."""
    column = samples.media.get(name, {})
    for index, values in column.items():
        first = min(column)
        who, like = f"{name} of {samples.names[index]}", column[first]
        shape, expected = tuple(values.shape), tuple(like.shape)
        if shape[fixed] != expected[fixed] or len(shape) != len(expected):
            raise ValueError(
                f"{who} must have the shape {expected} of those of {samples.names[first]}, but for "
                f"their number, got {shape}"
            )
        if (values.dtype, values.device) != (like.dtype, like.device):
            raise ValueError(
                f"{who} must be {like.dtype} on {like.device}, as those of "
                f"{samples.names[first]}, got {values.dtype} on {values.device}"
            )
