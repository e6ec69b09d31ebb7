"""Each sample read by itself: its names, the shapes and the types of what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from vecrope import checks
from vecrope.collate import fields
from vecrope.collate.alike import check_alike
from vecrope.collate.media import check_media, count_media, read_medium, read_tensor
from vecrope.collate.number import check_alone
from vecrope.collate.samples import Sample
from vecrope.families.rules import OmniRule
from vecrope.spec import MRopeSpec

_KNOWN = frozenset((*fields.NAMES, *fields.BOUNDARIES))
_TOKENS, _MEDIA = frozenset(fields.TOKENS), frozenset(fields.MEDIA)


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
    check_alike(read)
    return read


def read_dummy(picture: object, like: Sample, spec: MRopeSpec) -> Sample:
    """Read the picture for a batch without any, whose samples have the names that `like` has."""
    dummy = read_sample(picture, spec, "dummy_image", keep_extra=False)
    missing = [name for name in like.tokens if name not in (*dummy.tokens, "attention_mask")]
    if missing:
        raise ValueError(f"dummy_image has no {missing[0]}, the samples have")
    check_alone(dummy, spec, "dummy_image")
    return dummy


def read_sample(sample: object, spec: MRopeSpec, who: str, keep_extra: bool) -> Sample:
    """Read one sample, by itself; `who` names it."""
    if not isinstance(sample, Mapping):
        raise TypeError(f"{who} must be a mapping of names to values, got {type(sample).__name__}")
    tokens, media, extra = {}, {}, {}
    for name, value in sample.items():
        if name in _TOKENS:
            if value is not None:
                tokens[name] = _row(value, name, who)
        elif name in _MEDIA:
            medium = None if value is None else read_medium(value, name, spec, who)
            if medium is not None:
                media[name] = medium
        elif name not in _KNOWN:
            extra[name] = value
    if extra and not keep_extra:
        _raise_unknown(extra, sample, who)
    if "input_ids" not in tokens:
        unprocessed = fields.UNPROCESSED.intersection(map(str, extra))
        raise ValueError(
            f"{who} has no input_ids" + (": run the processor first" if unprocessed else "")
        )
    length = tokens["input_ids"].shape[0]
    for name, row in tokens.items():
        if row.shape[0] != length:
            raise ValueError(
                f"{name} of {who} must have the {length} tokens of its input_ids, got "
                f"{row.shape[0]}"
            )
    counts = count_media(media)
    check_media(media, counts, spec, who)
    return Sample(
        length,
        tokens,
        media,
        counts,
        sound=_sound(sample.get("use_audio_in_video"), counts["video"], spec, who),
        numbered=_numbered(sample, length, spec, who),
        extra=extra,
    )


def _raise_unknown(unknown: Mapping[str, Any], sample: Mapping[str, Any], who: str) -> NoReturn:
    remedy = (
        "run the processor first"
        if "input_ids" not in sample and fields.UNPROCESSED.intersection(map(str, unknown))
        else "extra='stack', 'list' or 'drop' says what to do with them"
    )
    raise TypeError(
        f"{who} has {', '.join(sorted(map(str, unknown)))}, which are none of "
        f"{', '.join(fields.NAMES)}: {remedy}"
    )


def _row(value: object, name: str, who: str) -> Tensor:
    """Return (T,) int64 on the CPU, which may alias `value`."""
    if (
        isinstance(value, Tensor)
        and value.dtype == torch.int64
        and value.dim() == 1
        and checks.is_plain(value)
        and value.numel()
    ):
        return value  # as most are
    row = given = read_tensor(value, name, who)
    if row.dim() == 2 and row.shape[0] == 1:
        row = row[0]
    if row.dim() != 1 or not row.numel():
        raise ValueError(
            f"{name} of {who} must have shape (T,) or (1, T) of at least one token, got "
            f"{tuple(given.shape)}"
        )
    if row.dtype not in (*checks.INTEGRAL, torch.uint16, torch.uint32):
        raise TypeError(f"{name} of {who} must be integers, got {row.dtype}")
    return row.to("cpu", torch.int64)


def _sound(value: object, num_videos: int, spec: MRopeSpec, who: str) -> Sequence[bool]:
    """Return whether each video has its sound, which is said for all or for each."""
    if value is None or value is False:
        return (False,) * num_videos
    flags = value
    if isinstance(value, Tensor):
        values = read_tensor(value, "use_audio_in_video", who)
        flags = values.tolist() if values.dtype == torch.bool else None
    flags = [flags] * num_videos if isinstance(flags, bool) else flags
    if not isinstance(flags, Sequence) or not all(isinstance(flag, bool) for flag in flags):
        got = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else repr(value)
        raise TypeError(
            f"use_audio_in_video of {who} must be a bool, or one for each of its videos, got {got}"
        )
    if len(flags) != num_videos:
        raise ValueError(
            f"use_audio_in_video of {who} must be one for each of its {num_videos} videos, got "
            f"{len(flags)}"
        )
    if (value is True or any(flags)) and "use_audio_in_video" not in spec.arguments:
        raise ValueError(
            f"use_audio_in_video of {who} must be False: {spec.model_type} does not take audio"
        )
    return tuple(flags)


def _numbered(
    sample: Mapping[str, Any], length: int, spec: MRopeSpec, who: str
) -> tuple[Tensor, Tensor] | None:
    """Return positions (axes, 1, T), without the text row in front, and deltas (1, 1), if given."""
    given, deltas = sample.get("position_ids"), sample.get("rope_deltas")
    if given is None:
        return None
    axes = getattr(spec.own_rule, "num_axes", 3)
    positions = _positions(given, "position_ids", spec, who)
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
    if deltas is None:
        raise ValueError(f"{who} has position_ids and no rope_deltas")
    deltas = _positions(deltas, "rope_deltas", spec, who)
    if deltas.numel() != 1:
        raise ValueError(f"rope_deltas of {who} must have shape (1, 1), got {tuple(deltas.shape)}")
    return positions[-axes:], deltas.reshape(1, 1)


def _positions(value: object, name: str, spec: MRopeSpec, who: str) -> Tensor:
    """Return positions or deltas on the CPU; those of the omni families alone may be fractions."""
    values = read_tensor(value, name, who)
    if values.dtype not in checks.INTEGRAL and not isinstance(spec.own_rule, OmniRule):
        raise TypeError(f"{name} of {who} must be integers, got {values.dtype}")
    return values.cpu()
