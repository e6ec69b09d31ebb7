"""What all samples of a batch must have of one kind, or none of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vecrope.collate import fields
from vecrope.collate.samples import Sample


def _always(_: Sample) -> bool:
    return True


def _with_audio(sample: Sample) -> bool:
    return any(name in sample.media for name in ("feature_attention_mask", "audio_seqlens"))


def _with(kind: str) -> Callable[[Sample], bool]:
    return lambda sample: sample.counts[kind] > 0 or fields.CROPS[kind] in sample.media


# Which samples must have a name that others have.
_NEEDED: dict[str, Callable[[Sample], bool]] = {
    **dict.fromkeys(("labels", "mm_token_type_ids", "moe_mm_token_type_ids"), _always),
    **dict.fromkeys(fields.SECONDS, lambda sample: sample.counts["video"] > 0),
    **{name: _with(kind) for kind, name in fields.PIXELS.items()},
    **dict.fromkeys(fields.AUDIO, _with_audio),
}


def check_alike(samples: Sequence[Sample]) -> None:
    """Check that what all samples must have, or none, is so, and that it can be joined."""
    present = {name for sample in samples for name in (*sample.tokens, *sample.media)}
    # In the order of `_NEEDED`, so that messages do not depend on that of the samples.
    for name in [name for name in _NEEDED if name in present]:
        present_in = [name in sample.tokens or name in sample.media for sample in samples]
        _check_all(name, samples, present_in, _NEEDED[name])
    numbered = [sample.numbered is not None for sample in samples]
    _check_all("position_ids", samples, numbered, _always)
    for name in present.intersection(fields.SECONDS):
        _check_types(samples, name)
    crops = not present.isdisjoint(fields.CROPS.values())
    for name in present.intersection(fields.PIXELS.values()):
        _check_shapes(samples, name, slice(-1) if crops else slice(1, None))
    if "input_features" in present:
        _check_shapes(samples, "input_features", slice(1, 2))


def check_masks(samples: Sequence[Sample], joined: Tensor, *, packed: bool) -> None:
    """Check that masks hold 0 or 1, and where samples are packed, that they mask nothing.

    Args:
        samples: as they were read.
        joined: all of their masks, and zeros at padding.
        packed: whether samples are packed.
    """
    low, high = (int(value) for value in joined.aminmax())
    if packed <= low and high <= 1:
        return
    for index, sample in enumerate(samples):
        if "attention_mask" not in sample.tokens:
            continue
        low, high = (int(value) for value in sample.tokens["attention_mask"].aminmax())
        if low < 0 or high > 1:
            raise ValueError(
                f"attention_mask of sample {index} must hold 0 or 1, got {high} at most and "
                f"{low} at least"
            )
        if low < packed:
            raise ValueError(
                f"attention_mask of sample {index} must be 1 at every token to be packed: leave "
                "padding out of the sample"
            )


def _check_all(
    name: str,
    samples: Sequence[Sample],
    present: Sequence[bool],
    needed: Callable[[Sample], bool],
) -> None:
    if all(present) or not any(present):
        return
    for index, sample in enumerate(samples):
        if not present[index] and needed(sample):
            raise ValueError(
                f"sample {index} has no {name}, sample {present.index(True)} has: all samples "
                "must have them, or none"
            )


def _check_types(samples: Sequence[Sample], name: str) -> None:
    """Check that seconds are tensors of one dtype in all samples, or lists in all.

    Upstreams round each of them in its own way.
    """
    kinds: dict[torch.dtype | None, int] = {}
    for index, sample in enumerate(samples):
        if name in sample.media:
            seconds = sample.media[name]
            kinds.setdefault(seconds.dtype if isinstance(seconds, Tensor) else None, index)
    if len(kinds) > 1:
        got = [
            f"{'a list' if dtype is None else f'a tensor of {dtype}'} in sample {index}"
            for dtype, index in kinds.items()
        ]
        raise TypeError(
            f"{name} must be tensors of one dtype in all samples, or lists in all; got {got[0]} "
            f"and {got[1]}"
        )


def _check_shapes(samples: Sequence[Sample], name: str, fixed: slice) -> None:
    """Check that pixels or features are alike but for the dimension that joins them."""
    given = [(at, sample.media[name]) for at, sample in enumerate(samples) if name in sample.media]
    first, like = given[0]
    expected = tuple(like.shape)
    for index, values in given:
        shape = tuple(values.shape)
        if shape[fixed] != expected[fixed] or len(shape) != len(expected):
            raise ValueError(
                f"{name} of sample {index} must have the shape {expected} of those of sample "
                f"{first}, but for their number, got {shape}"
            )
        if (values.dtype, values.device) != (like.dtype, like.device):
            raise ValueError(
                f"{name} of sample {index} must be {like.dtype} on {like.device}, as those of "
                f"sample {first}, got {values.dtype} on {values.device}"
            )
