"""The media of one sample, read by themselves: shapes, types, and how many there are of each."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from vecrope import checks
from vecrope.collate import fields
from vecrope.families.rules import GlmImage, MiniCPMV47
from vecrope.spec import MRopeSpec

# What holds integers, with its shape; None is any size.
_INTEGERS: dict[str, tuple[int | None, ...]] = {
    **dict.fromkeys(fields.GRIDS.values(), (None, 3)),
    **dict.fromkeys(fields.CROPS.values(), (None, 2)),
    "images_per_sample": (1,),
    "audio_seqlens": (None,),
    "feature_attention_mask": (None, None),
}
_OF_SOME_FAMILIES = frozenset(("audio_seqlens", *fields.CROPS.values(), "images_per_sample"))
# What must be as many as something else.
_COUNTED = frozenset((*fields.SECONDS, *fields.PIXELS.values(), *fields.AUDIO, "images_per_sample"))


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
    if not checks.is_plain(tensor):
        checks.check_readable(f"{name} of {who}", tensor)
    return tensor


def read_medium(value: object, name: str, spec: MRopeSpec, who: str) -> Any:
    """Return grids, seconds, pixels or audio, or None for what holds nothing."""
    shape = _INTEGERS.get(name)
    if shape is None and name in fields.SECONDS:
        return _seconds(value, name, who)
    values = read_tensor(value, name, who)
    if not values.numel() and name != "images_per_sample":
        return None
    if name in _OF_SOME_FAMILIES and name not in spec.arguments:
        raise ValueError(f"{who} has {name}: it is not used by {spec.model_type}")
    if shape is None:
        if not values.is_floating_point():
            raise TypeError(f"{name} of {who} must be floating-point numbers, got {values.dtype}")
        if not values.dim():
            raise ValueError(f"{name} of {who} must have rows, got a single number")
        return values
    if values.dtype not in checks.INTEGRAL:
        raise TypeError(f"{name} of {who} must be integers, got {values.dtype}")
    if values.dim() == 3 and len(shape) == 2 and values.shape[0] == 1:
        values = values[0]  # a batch of one
    if values.dim() != len(shape) or shape[-1] not in (None, values.shape[-1]):
        expected = ", ".join("n" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name} of {who} must have shape ({expected}{',' if len(shape) == 1 else ''}), "
            f"got {tuple(values.shape)}"
        )
    return values if values.is_cpu else values.cpu()


def _seconds(value: Any, name: str, who: str) -> Any:
    checks.check_seconds_type(f"{name} of {who}", value)
    if isinstance(value, Tensor):
        checks.check_readable(f"{name} of {who}", value)
        if value.dim() != 1:
            raise ValueError(f"{name} of {who} must have shape (n,), got {tuple(value.shape)}")
        value = value.cpu()
    return value if len(value) else None


def count_media(media: Mapping[str, Any]) -> dict[str, int]:
    """Return how many images, videos and audios there are, by their kind."""
    images, videos = media.get("image_grid_thw"), media.get("video_grid_thw")
    audios = [media[name].shape[0] for name in fields.AUDIO if name in media]
    return {
        "image": 0 if images is None else images.shape[0],
        "video": 0 if videos is None else videos.shape[0],
        "audio": max(audios) if audios else 0,
    }


def check_media(
    media: Mapping[str, Any], counts: Mapping[str, int], spec: MRopeSpec, who: str
) -> None:
    """Check that seconds, pixels and audio are as many as the sample's own grids ask for."""
    given = _COUNTED.intersection(media)
    if not given:
        return
    for kind, name in fields.PIXELS.items():
        if name in given:
            _check_pixels(media, kind, spec, who)
    if counts["audio"]:
        _check_audio(media, who)
    if "images_per_sample" in given and int(media["images_per_sample"]) != counts["image"]:
        raise ValueError(
            f"images_per_sample of {who} must be the {counts['image']} rows of its "
            f"image_grid_thw, got {int(media['images_per_sample'])}"
        )
    seconds = [name for name in fields.SECONDS if name in given]
    if len(seconds) > 1:
        raise ValueError(f"{who} has {' and '.join(seconds)}, which are the same: give one of them")
    for name in seconds:
        if len(media[name]) != counts["video"]:
            raise ValueError(
                f"{name} of {who} must be one for each of its {counts['video']} videos, got "
                f"{len(media[name])}"
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
