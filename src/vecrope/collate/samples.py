"""Each sample read by itself: its names, the shapes and the types of what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vecrope import checks
from vecrope.collate import fields
from vecrope.families.rules import GlmImage, MiniCPMV47, OmniRule
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec


@dataclass
class Sample:
    """One sample: T tokens, and the media that they stand for."""

    tokens: dict[str, Tensor]  # (T,) int64 each, `input_ids` among them
    media: dict[str, Any]  # grids, seconds, pixels and audio, by their names
    sound: bool = False  # whether videos come with their sound
    numbered: tuple[Tensor, Tensor] | None = None  # (3, 1, T) positions and (1, 1) deltas
    extra: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.tokens["input_ids"].shape[0]

    def count(self, kind: str) -> int:
        """Return the number of images, videos or audios."""
        names = fields.AUDIO if kind == "audio" else (fields.GRIDS[kind],)
        return max((len(self.media[name]) for name in names if name in self.media), default=0)

    def seconds(self) -> Any:
        """Return the seconds of the videos, by whichever name; None where none are given."""
        return next((self.media[name] for name in fields.SECONDS if name in self.media), None)

    def inputs(self, spec: MRopeSpec) -> Inputs:
        """Return the arguments by which the tokens, as a row of their own, are numbered."""
        reads = spec.arguments
        images = self.media.get("image_grid_thw")
        return Inputs(
            self.tokens["input_ids"][None],
            images,
            self.media.get("video_grid_thw"),
            mm_token_type_ids=None
            if isinstance(spec.own_rule, OmniRule | GlmImage)
            or "mm_token_type_ids" not in self.tokens
            else self.tokens["mm_token_type_ids"][None],
            second_per_grid_ts=self.seconds() if "second_per_grid_ts" in reads else None,
            audio_seqlens=self.audio_lengths() if "audio_seqlens" in reads else None,
            use_audio_in_video=self.sound,
            images_per_sample=torch.tensor([self.count("image")])
            if "images_per_sample" in reads
            else None,
            target_sizes=self.media.get("target_sizes"),
            target_sizes_videos=self.media.get("target_sizes_videos"),
        )

    def audio_lengths(self) -> Tensor | None:
        """Return the (num_audios,) mel frames of the audio, as the omni models count them."""
        lengths: Tensor | None = self.media.get("audio_seqlens")
        mask = self.media.get("feature_attention_mask")
        if lengths is None and mask is not None:
            return torch.as_tensor(mask.sum(-1))
        return lengths


def read_samples(
    samples: Sequence[Mapping[str, Any]], spec: MRopeSpec, *, keep_extra: bool
) -> list[Sample]:
    """Read each sample, and check that all have the same things of which all or none must.

    Raises:
        TypeError: for what is no sequence of samples, for an unknown name, and for a wrong type.
        ValueError: for no samples, wrong shapes, and things that only some samples have.
    """
    if isinstance(samples, str | bytes | Mapping) or not isinstance(samples, Sequence):
        raise TypeError(
            f"samples must be a sequence of mappings, one for each prompt, got "
            f"{type(samples).__name__}"
        )
    if not len(samples):
        raise ValueError("samples must hold at least one sample, got none")
    read = [
        read_sample(sample, spec, f"sample {index}", keep_extra)
        for index, sample in enumerate(samples)
    ]
    _check_alike(read)
    return read


def read_sample(sample: object, spec: MRopeSpec, who: str, keep_extra: bool) -> Sample:
    """Read one sample, by itself; `who` names it."""
    if not isinstance(sample, Mapping):
        raise TypeError(f"{who} must be a mapping of names to values, got {type(sample).__name__}")
    unknown = [name for name in sample if name not in _KNOWN]
    if unknown and not keep_extra:
        listed = ", ".join(sorted(map(str, unknown)))
        remedy = (
            "run the processor first"
            if "input_ids" not in sample and fields.UNPROCESSED.intersection(unknown)
            else "extra='stack', 'list' or 'drop' says what to do with them"
        )
        raise TypeError(
            f"{who} has {listed}, which are none of {', '.join(fields.NAMES)}: {remedy}"
        )
    given = {name: value for name, value in sample.items() if value is not None}
    if "input_ids" not in given:
        unprocessed = fields.UNPROCESSED.intersection(map(str, given))
        raise ValueError(
            f"{who} has no input_ids" + (": run the processor first" if unprocessed else "")
        )
    tokens = {"input_ids": _row(given["input_ids"], "input_ids", who)}
    length = tokens["input_ids"].shape[0]
    for name in fields.TOKEN_PADDING:
        if name in given:
            tokens[name] = _row(given[name], name, who, length)
    mask = tokens.get("attention_mask")
    if mask is not None and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"attention_mask of {who} must hold 0 or 1, got {int(mask.max())} at most and "
            f"{int(mask.min())} at least"
        )
    read = Sample(tokens, _media(given, spec, who))
    _check_media(read, spec, who)
    read.sound = _sound(given.get("use_audio_in_video", False), read.count("video"), spec, who)
    if "position_ids" in given:
        read.numbered = _numbered(given, length, getattr(spec.own_rule, "num_axes", 3), who)
    read.extra = {name: sample[name] for name in unknown}
    return read


_KNOWN = frozenset((*fields.NAMES, *fields.BOUNDARIES))


def _tensor(value: object, name: str, who: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} of {who} must be a tensor, an array or a list of numbers, got "
            f"{type(value).__name__} that is none of them"
        ) from error
    checks.check_readable(f"{name} of {who}", tensor)
    return tensor


def _row(value: object, name: str, who: str, length: int | None = None) -> Tensor:
    """Return (T,) int64, which may alias `value`."""
    row = _tensor(value, name, who)
    shape = tuple(row.shape)
    if len(shape) == 2 and shape[0] == 1:
        row = row[0]
    if row.dim() != 1 or row.numel() == 0:
        raise ValueError(
            f"{name} of {who} must have shape (T,) or (1, T) of at least one token, got {shape}"
        )
    if length is not None and row.shape[0] != length:
        raise ValueError(
            f"{name} of {who} must have the {length} tokens of its input_ids, got {row.shape[0]}"
        )
    if row.is_floating_point() or row.is_complex():
        raise TypeError(f"{name} of {who} must be integers, got {row.dtype}")
    return row.to(torch.int64)


def _media(given: dict[str, Any], spec: MRopeSpec, who: str) -> dict[str, Any]:
    """Read grids, seconds, pixels and audio; what holds nothing counts as absent."""
    media: dict[str, Any] = {}
    shapes = {
        **dict.fromkeys(fields.GRIDS.values(), (None, 3)),
        **dict.fromkeys(fields.CROPS.values(), (None, 2)),
        "images_per_sample": (1,),
        "audio_seqlens": (None,),
        "feature_attention_mask": (None, None),
    }
    for name, shape in shapes.items():
        if name not in given:
            continue
        values = _tensor(given[name], name, who)
        if values.numel() == 0 and name != "images_per_sample":
            continue
        if values.is_floating_point() or values.is_complex():
            raise TypeError(f"{name} of {who} must be integers, got {values.dtype}")
        if values.dim() == 3 and values.shape[0] == 1 and len(shape) == 2:
            values = values[0]  # a batch of one
        if values.dim() != len(shape) or any(
            size not in (None, actual) for size, actual in zip(shape, values.shape, strict=True)
        ):
            expected = ", ".join("n" if size is None else str(size) for size in shape)
            raise ValueError(
                f"{name} of {who} must have shape ({expected}{',' if len(shape) == 1 else ''}), "
                f"got {tuple(values.shape)}"
            )
        media[name] = values
    for name in (*fields.PIXELS.values(), "input_features"):
        if name in given and (values := _tensor(given[name], name, who)).numel():
            media[name] = values
    names = [name for name in fields.SECONDS if name in given and len(given[name])]
    if len(names) > 1:
        raise ValueError(f"{who} has {' and '.join(names)}, which are the same: give one of them")
    for name in names:
        media[name] = given[name]
        checks.check_seconds_type(f"{name} of {who}", given[name])
    for name in ("audio_seqlens", "target_sizes", "target_sizes_videos", "images_per_sample"):
        if name in media and name not in spec.arguments:
            raise ValueError(f"{who} has {name}: it is not used by {spec.model_type}")
    return media


def _check_media(sample: Sample, spec: MRopeSpec, who: str) -> None:
    """Check that seconds, pixels and audio are as many as the sample's own grids ask for."""
    for name in fields.SECONDS:
        if name in sample.media and len(sample.media[name]) != sample.count("video"):
            raise ValueError(
                f"{name} of {who} must be one for each of its {sample.count('video')} videos, got "
                f"{len(sample.media[name])}"
            )
    media = sample.media
    if "images_per_sample" in media and int(media["images_per_sample"]) != sample.count("image"):
        raise ValueError(
            f"images_per_sample of {who} must be the {sample.count('image')} rows of its "
            f"image_grid_thw, got {int(media['images_per_sample'])}"
        )
    for kind in fields.GRIDS:
        _check_pixels(sample, kind, spec, who)
    features, mask = media.get("input_features"), media.get("feature_attention_mask")
    if features is not None and features.dim() != 3:
        raise ValueError(
            f"input_features of {who} must have shape (num_audios, mel_bins, frames), got "
            f"{tuple(features.shape)}"
        )
    lengths = {
        name: value.shape[0]
        for name, value in (
            ("input_features", features),
            ("feature_attention_mask", mask),
            ("audio_seqlens", media.get("audio_seqlens")),
        )
        if value is not None
    }
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{count} in {name}" for name, count in lengths.items())
        raise ValueError(f"{who} must have one row for each audio, got {listed}")
    if features is not None and mask is not None and features.shape[2] != mask.shape[1]:
        raise ValueError(
            f"feature_attention_mask of {who} must have the {features.shape[2]} frames of its "
            f"input_features, got {mask.shape[1]}"
        )


def _check_pixels(sample: Sample, kind: str, spec: MRopeSpec, who: str) -> None:
    name = fields.PIXELS[kind]
    pixels = sample.media.get(name)
    if pixels is None:
        return
    if not pixels.is_floating_point():
        raise TypeError(f"{name} of {who} must be floating-point numbers, got {pixels.dtype}")
    by_crops = isinstance(spec.own_rule, MiniCPMV47)
    source = fields.CROPS[kind] if by_crops else fields.GRIDS[kind]
    grids = sample.media.get(source)
    if grids is None:
        raise ValueError(f"{who} has {name} and no {source}")
    patches = grids.to(torch.int64).prod(1)
    if by_crops:  # patches stand side by side
        patch, needed = pixels.shape[-2] if pixels.dim() > 1 else 1, int(patches.sum())
        if pixels.shape[-1] != needed * patch:
            raise ValueError(
                f"{name} of {who} must hold {needed} patches of {patch} columns, as its {source} "
                f"says, got {pixels.shape[-1]} columns"
            )
        return
    # Of glm_image's grids the last are of pictures that are still to be generated.
    counts = patches.cumsum(0).tolist() if isinstance(spec.own_rule, GlmImage) else []
    needed = int(patches.sum())
    if pixels.shape[0] != needed and pixels.shape[0] not in counts:
        raise ValueError(
            f"{name} of {who} must have {needed} rows, the patches of its {source}, got "
            f"{pixels.shape[0]}"
        )


def _sound(value: object, num_videos: int, spec: MRopeSpec, who: str) -> bool:
    """Return whether the videos have their sound, which is said for all or for each."""
    flags = value.tolist() if isinstance(value, Tensor) else value
    flags = [flags] if isinstance(flags, bool) else flags
    if not isinstance(flags, Sequence) or not all(isinstance(flag, bool) for flag in flags):
        raise TypeError(
            f"use_audio_in_video of {who} must be a bool, or one for each of its videos, got "
            f"{value!r}"
        )
    if not isinstance(value, bool) and len(flags) != num_videos:
        raise ValueError(
            f"use_audio_in_video of {who} must be one for each of its {num_videos} videos, got "
            f"{len(flags)}"
        )
    if len(set(flags)) > 1:
        raise ValueError(
            f"use_audio_in_video of {who} must be the same for its videos, got {flags}: upstream "
            "numbers no sample that has videos with and without their sound"
        )
    if any(flags) and "use_audio_in_video" not in spec.arguments:
        raise ValueError(
            f"use_audio_in_video of {who} must be False: {spec.model_type} does not take audio"
        )
    return any(flags) and num_videos > 0


def _numbered(given: dict[str, Any], length: int, axes: int, who: str) -> tuple[Tensor, Tensor]:
    """Return positions (axes, 1, T), without the text row in front, and deltas (1, 1)."""
    positions = _tensor(given["position_ids"], "position_ids", who)
    shape = tuple(positions.shape)
    if shape in ((1, axes, length), (1, axes + 1, length)):
        positions = positions[0]
    if positions.dim() == 2:
        positions = positions[:, None]
    if tuple(positions.shape) not in ((axes, 1, length), (axes + 1, 1, length)):
        raise ValueError(
            f"position_ids of {who} must have shape ({axes}, {length}), ({axes}, 1, {length}) or "
            f"(1, {axes}, {length}), with or without the text row in front, got {shape}"
        )
    if "rope_deltas" not in given:
        raise ValueError(f"{who} has position_ids and no rope_deltas")
    deltas = _tensor(given["rope_deltas"], "rope_deltas", who)
    if deltas.numel() != 1:
        raise ValueError(f"rope_deltas of {who} must have shape (1, 1), got {tuple(deltas.shape)}")
    return positions[-axes:], deltas.reshape(1, 1)


def _check_alike(samples: Sequence[Sample]) -> None:
    """Check that what all samples must have, or none, is so."""

    def check(name: str, has: list[bool], needed: list[bool]) -> None:
        wanting = [index for index, here in enumerate(has) if needed[index] and not here]
        if any(has) and wanting:
            other = has.index(True)
            raise ValueError(
                f"sample {wanting[0]} has no {name}, sample {other} has: all samples must have "
                "them, or none"
            )

    everyone = [True] * len(samples)
    for name in ("labels", "mm_token_type_ids", "moe_mm_token_type_ids"):
        check(name, [name in sample.tokens for sample in samples], everyone)
    check("position_ids", [sample.numbered is not None for sample in samples], everyone)
    films = [sample.count("video") > 0 for sample in samples]
    for name in fields.SECONDS:
        check(name, [name in sample.media for sample in samples], films)
        _check_types(samples, name)
    for kind, name in fields.PIXELS.items():
        needed = [
            sample.count(kind) > 0 or fields.CROPS[kind] in sample.media for sample in samples
        ]
        check(name, [name in sample.media for sample in samples], needed)
        _check_shapes(samples, name, slice(-1) if _has_crops(samples) else slice(1, None))
    sounds = [
        any(name in sample.media for name in ("feature_attention_mask", "audio_seqlens"))
        for sample in samples
    ]
    for name in fields.AUDIO:
        check(name, [name in sample.media for sample in samples], sounds)
    _check_shapes(samples, "input_features", slice(1, 2))


def _check_types(samples: Sequence[Sample], name: str) -> None:
    """Check that seconds are tensors in all samples or lists in all: upstreams round them apart."""
    kinds = {
        isinstance(sample.media[name], Tensor): index
        for index, sample in enumerate(samples)
        if name in sample.media
    }
    if len(kinds) > 1:
        raise TypeError(
            f"{name} must be tensors in all samples, or lists in all; got a tensor in sample "
            f"{kinds[True]} and a list in sample {kinds[False]}"
        )


def _has_crops(samples: Sequence[Sample]) -> bool:
    return any(name in sample.media for sample in samples for name in fields.CROPS.values())


def _check_shapes(samples: Sequence[Sample], name: str, fixed: slice) -> None:
    """Check that pixels or features have one shape but for the dimension that joins them."""
    shapes = {
        index: tuple(sample.media[name].shape)
        for index, sample in enumerate(samples)
        if name in sample.media
    }
    for index, shape in shapes.items():
        first = next(iter(shapes))
        if shape[fixed] != shapes[first][fixed] or len(shape) != len(shapes[first]):
            raise ValueError(
                f"{name} of sample {index} must have the shape {shapes[first]} of those of sample "
                f"{first}, but for their number, got {shape}"
            )
