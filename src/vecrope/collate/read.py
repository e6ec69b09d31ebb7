"""Samples read as columns: their names, and the shapes and the types of what they hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, NoReturn

import torch
from torch import Tensor

from vecrope import checks
from vecrope.collate import fields
from vecrope.collate.alike import check_alike
from vecrope.collate.media import check_media, count_media, read_media, read_tensor
from vecrope.collate.number import number_alone
from vecrope.collate.samples import Column, Sample, Samples
from vecrope.families.rules import OmniRule
from vecrope.inputs import num_axes_of
from vecrope.spec import MRopeSpec

_KNOWN = frozenset((*fields.NAMES, *fields.BOUNDARIES))
_METADATA = attrgetter("dtype", "ndim", "layout", "is_cpu", "is_nested")
_PLAIN_ROW = (torch.int64, 1, torch.strided, True, False)


def read_samples(
    samples: Sequence[Mapping[str, Any]],
    spec: MRopeSpec,
    *,
    keep_extra: bool,
    names: Sequence[str] | None = None,
) -> Samples:
    """Read samples, and check that all have the same things of which all or none must.

    Args:
        samples: as `collate` takes them.
        spec: the family's rules.
        keep_extra: whether they may hold names that are not known.
        names: what messages call them. None: by their number.

    Raises:
        TypeError: for what is no sequence of samples, for an unknown name, and for a wrong type.
        ValueError: for no samples, wrong shapes, and things that only some samples have.
    """
    if not isinstance(samples, Sequence) or isinstance(samples, str | bytes):
        raise TypeError(
            f"samples must be a sequence of mappings, one for each prompt, got "
            f"{type(samples).__name__}"
        )
    if not len(samples):
        raise ValueError("samples must hold at least one sample, got none")
    if names is None:
        names = [f"sample {index}" for index in range(len(samples))]
    given: dict[str, Column] = defaultdict(dict)
    for index, sample in enumerate(samples):
        if not isinstance(sample, Mapping):
            raise TypeError(
                f"{names[index]} must be a mapping of names to values, got {type(sample).__name__}"
            )
        for name, value in sample.items():
            if value is not None or name not in _KNOWN:
                given[name][index] = value
    extra = {name: column for name, column in given.items() if name not in _KNOWN}
    if extra and not keep_extra:
        first = min(map(min, extra.values()))
        _raise_unknown(samples[first], names[first])
    if len(given["input_ids"]) < len(names):
        index = next(index for index in range(len(names)) if index not in given["input_ids"])
        unprocessed = any(index in extra.get(name, ()) for name in fields.UNPROCESSED)
        remedy = ": run the processor first" if unprocessed else ""
        raise ValueError(f"{names[index]} has no input_ids{remedy}")
    tokens = {name: _rows(given[name], name, names) for name in fields.TOKENS if name in given}
    lengths = [*map(Tensor.numel, tokens["input_ids"].values())]
    for name, rows in tokens.items():
        found = [*map(Tensor.numel, rows.values())]
        for index, row in rows.items() if found != lengths else ():
            if row.numel() != lengths[index]:
                raise ValueError(
                    f"{name} of {names[index]} must have the {lengths[index]} tokens of its "
                    f"input_ids, got {row.numel()}"
                )
    media: dict[str, Column] = {}
    joined: dict[str, Tensor] = {}
    for name in fields.MEDIA:
        if name in given:
            column, whole = read_media(given[name], name, spec, names)
            if column:
                media[name] = column
            if whole is not None:
                joined[name] = whole
    counts = count_media(media, len(names))
    sound: list[Sequence[bool]] = [()] * len(names)
    if flags := given.get("use_audio_in_video"):
        sound = [
            _sound(flags.get(index), num_videos, spec, names[index])
            for index, num_videos in enumerate(counts["video"])
        ]
    deltas = given.get("rope_deltas", {})
    numbered = {
        index: _numbered(positions, deltas.get(index), lengths[index], spec, names[index])
        for index, positions in given.get("position_ids", {}).items()
    }
    read = Samples(names, lengths, tokens, media, counts, sound, numbered, extra, joined)
    check_media(read, spec)
    check_alike(read)
    return read


def read_dummy(picture: Mapping[str, Any], like: Samples, spec: MRopeSpec) -> Sample:
    """Read and number the picture for a batch without any, which has the names of its samples."""
    dummy = read_samples([picture], spec, keep_extra=True, names=["dummy_image"])[0]
    dummy.tokens.pop("attention_mask", None)
    for name in like.tokens:
        if name not in dummy.tokens and name != "attention_mask":
            raise ValueError(f"dummy_image has no {name}, the samples have")
    dummy.numbered = number_alone(dummy, spec, "dummy_image")
    return dummy


def read_token_ids(name: str, given: Sequence[int]) -> list[int]:
    """Return ids that are given as an argument of this name."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(f"{name} must be a sequence of ints, got {given!r}")
    for token_id in given:
        checks.check_int(name, token_id, 0)
    return [*given]


def _raise_unknown(sample: Mapping[str, Any], who: str) -> NoReturn:
    unknown = {str(name) for name in sample if name not in _KNOWN}
    remedy = "extra='stack', 'list' or 'drop' says what to do with them"
    if "input_ids" not in sample and fields.UNPROCESSED & unknown:
        remedy = "run the processor first"
    raise TypeError(
        f"{who} has {', '.join(sorted(unknown))}, which are none of "
        f"{', '.join(fields.NAMES)}: {remedy}"
    )


def _rows(column: Column, name: str, names: Sequence[str]) -> Column:
    """Return (T,) int64 on the CPU of each sample, which may alias what it holds."""
    rows = column.values()
    plain = {*map(type, rows)} == {Tensor} and {*map(_METADATA, rows)} == {_PLAIN_ROW}
    if plain and all(map(Tensor.numel, rows)):
        return column  # as most are
    return {index: _row(value, name, names[index]) for index, value in column.items()}


def _row(value: object, name: str, who: str) -> Tensor:
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
    given: object, deltas: object, length: int, spec: MRopeSpec, who: str
) -> tuple[Tensor, Tensor]:
    """Return positions (axes, 1, T), without the text row in front, and deltas (1, 1)."""
    axes = num_axes_of(spec)
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
