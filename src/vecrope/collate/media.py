"""The media of samples, each read by itself: shapes, types, and how many there are of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from vecrope import checks
from vecrope.collate import fields
from vecrope.collate.samples import Column, Samples
from vecrope.families.rules import GlmImage, MiniCPMV47
from vecrope.spec import MRopeSpec

# None is any size.
Shape = tuple[int | None, ...]

# What holds integers or seconds, with its shape.
_SHAPES: dict[str, Shape] = {
    **dict.fromkeys(fields.GRIDS.values(), (None, 3)),
    **dict.fromkeys(fields.CROPS.values(), (None, 2)),
    **dict.fromkeys(fields.SECONDS, (None,)),
    "images_per_sample": (1,),
    "audio_seqlens": (None,),
    "feature_attention_mask": (None, None),
}
_OF_SOME_FAMILIES = frozenset(("audio_seqlens", *fields.CROPS.values(), "images_per_sample"))


def join_plain(values: Collection[Any], dtype: torch.dtype, shape: Shape) -> Tensor | None:
    """Return values joined, None where one may not be a tensor of these, which holds something.

    What is joined shows for all of them at once what a closer look would show of each.
    """
    if {*map(type, values)} != {Tensor} or not all(map(Tensor.numel, values)):
        return None
    try:
        joined = torch.cat([*values])
    except (RuntimeError, TypeError):
        return None
    kind = joined.dtype, joined.layout, joined.is_cpu, joined.dim()
    plain = kind == (dtype, torch.strided, True, len(shape))
    return joined if plain and shape[-1] in (None, joined.shape[-1]) else None


def read_tensor(value: object, name: str, who: str) -> Tensor:
    """Return a value that a sample holds as a dense tensor, which may alias it."""
    if isinstance(value, Tensor):
        tensor = value
    else:
        try:
            tensor = torch.as_tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name} of {who} must be a tensor, an array or a list of numbers, got "
                f"{type(value).__name__} that is none of them"
            ) from error
    checks.check_readable(f"{name} of {who}", tensor)
    return tensor


def read_media(
    column: Column, name: str, spec: MRopeSpec, names: Sequence[str]
) -> tuple[Column, Tensor | None]:
    """Return grids, seconds, pixels or audio of the samples, without those that hold nothing.

    With them what they are joined, where they were joined to look at them.
    """
    found, joined, shape = column, None, _SHAPES.get(name)
    if shape is not None and name != "feature_attention_mask":  # which is padded to be joined
        dtype = torch.float32 if name in fields.SECONDS else torch.int64
        joined = join_plain(column.values(), dtype, shape)
    if joined is None:
        read = ((index, _medium(value, name, names[index])) for index, value in column.items())
        found = {index: value for index, value in read if number_of(value)}
    if found and name in _OF_SOME_FAMILIES and name not in spec.arguments:
        raise ValueError(f"{names[min(found)]} has {name}: it is not used by {spec.model_type}")
    return found, joined


def number_of(values: Tensor | Sequence[float]) -> int:
    """Return how many rows, or seconds, there are."""
    return values.shape[0] if isinstance(values, Tensor) else len(values)


def _medium(value: object, name: str, who: str) -> Any:
    """Return a medium that has been checked; one that holds nothing is empty."""
    if name in fields.SECONDS:
        checks.check_seconds_type(f"{name} of {who}", value)
        if not isinstance(value, Tensor):
            return value
    shape, values = _SHAPES.get(name), read_tensor(value, name, who)
    if not values.numel() and name != "images_per_sample":
        return ()
    if shape is None:
        if not values.is_floating_point():
            raise TypeError(f"{name} of {who} must be floating-point numbers, got {values.dtype}")
        if not values.dim():
            raise ValueError(f"{name} of {who} must have rows, got a single number")
        return values
    if values.dtype not in checks.INTEGRAL and name not in fields.SECONDS:
        raise TypeError(f"{name} of {who} must be integers, got {values.dtype}")
    if values.dim() == 3 and len(shape) == 2 and values.shape[0] == 1:
        values = values[0]  # a batch of one
    if values.dim() != len(shape) or shape[-1] not in (None, values.shape[-1]):
        expected = ", ".join("n" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name} of {who} must have shape ({expected}{',' if len(shape) == 1 else ''}), "
            f"got {tuple(values.shape)}"
        )
    return values.cpu()


def count_media(media: Mapping[str, Column], num_samples: int) -> dict[str, list[int]]:
    """Return how many images, videos and audios each sample has, by their kind."""
    counts = {kind: [0] * num_samples for kind in ("image", "video", "audio")}
    for kind, name in (*fields.GRIDS.items(), *(("audio", name) for name in fields.AUDIO)):
        of_kind = counts[kind]
        for index, values in media.get(name, {}).items():
            of_kind[index] = max(of_kind[index], values.shape[0])
    return counts


def check_media(samples: Samples, spec: MRopeSpec) -> None:
    """Check that seconds, pixels and audio are as many as each sample's own grids ask for."""
    media, counts, names = samples.media, samples.counts, samples.names
    for kind, name in fields.PIXELS.items():
        for index in media.get(name, ()):
            _check_pixels(samples[index].media, kind, spec, names[index])
    for index in {index for name in fields.AUDIO for index in media.get(name, ())}:
        _check_audio(samples[index].media, names[index])
    for index, number in media.get("images_per_sample", {}).items():
        if int(number) != counts["image"][index]:
            raise ValueError(
                f"images_per_sample of {names[index]} must be the {counts['image'][index]} rows of "
                f"its image_grid_thw, got {int(number)}"
            )
    first: dict[int, str] = {}
    for name in fields.SECONDS:
        for index, seconds in media.get(name, {}).items():
            if first.setdefault(index, name) != name:
                raise ValueError(
                    f"{names[index]} has {first[index]} and {name}, which are the same: give one "
                    "of them"
                )
            if number_of(seconds) != counts["video"][index]:
                raise ValueError(
                    f"{name} of {names[index]} must be one for each of its "
                    f"{counts['video'][index]} videos, got {number_of(seconds)}"
                )


def _check_pixels(media: Mapping[str, Any], kind: str, spec: MRopeSpec, who: str) -> None:
    name = fields.PIXELS[kind]
    pixels = media[name]
    by_crops = isinstance(spec.own_rule, MiniCPMV47)
    source = fields.CROPS[kind] if by_crops else fields.GRIDS[kind]
    grids = media.get(source)
    if grids is None:
        raise ValueError(f"{who} has {name} and no {source}")
    patches = [*map(prod, grids.tolist())]
    needed = sum(patches)
    if by_crops:  # patches stand side by side
        patch = pixels.shape[-2] if pixels.dim() > 1 else 1
        if pixels.shape[-1] != needed * patch:
            raise ValueError(
                f"{name} of {who} must hold {needed} patches of {patch} columns, as its {source} "
                f"says, got {pixels.shape[-1]} columns"
            )
        return
    rows = pixels.shape[0]
    # Of glm_image's grids the last are of pictures that are still to be generated.
    if rows != needed and not (
        isinstance(spec.own_rule, GlmImage)
        and rows in (sum(patches[:count]) for count in range(1, len(patches)))
    ):
        raise ValueError(
            f"{name} of {who} must have {needed} rows, the patches of its {source}, got {rows}"
        )


def _check_audio(media: Mapping[str, Any], who: str) -> None:
    features, mask = media.get("input_features"), media.get("feature_attention_mask")
    if features is not None and features.dim() != 3:
        raise ValueError(
            f"input_features of {who} must have shape (num_audios, mel_bins, frames), got "
            f"{tuple(features.shape)}"
        )
    lengths = {name: media[name].shape[0] for name in fields.AUDIO if name in media}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{count} in {name}" for name, count in lengths.items())
        raise ValueError(f"{who} must have one row for each audio, got {listed}")
    if features is not None and mask is not None and features.shape[2] != mask.shape[1]:
        raise ValueError(
            f"feature_attention_mask of {who} must have the {features.shape[2]} frames of its "
            f"input_features, got {mask.shape[1]}"
        )
