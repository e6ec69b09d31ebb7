"""Rows and media of all samples as the tensors of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.collate import fields
from vecrope.collate.samples import Sample

PaddingSide = Literal["left", "right"]
Extra = Literal["stack", "list", "drop"]

_PIXELS = frozenset(fields.PIXELS.values())


def join_rows(
    rows: Sequence[Tensor], value: int, before: Sequence[int], after: Sequence[int]
) -> Tensor:
    """Return (..., T) rows one behind the other, (..., N), with padding before and after each."""
    sizes = [*before, *after]
    if not any(sizes):
        return torch.cat([*rows], -1)
    padding = rows[0].new_full((*rows[0].shape[:-1], sum(sizes)), value).split(sizes, -1)
    pieces = zip(padding[: len(rows)], rows, padding[len(rows) :], strict=True)
    return torch.cat([*chain.from_iterable(pieces)], -1)


def join_media(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return grids, seconds, pixels and audio of all samples, in their order."""
    columns: dict[str, list[Any]] = {}
    for sample in samples:
        for name, value in sample.media.items():
            columns.setdefault(name, []).append(value)
    by_crops = any(name in columns for name in fields.CROPS.values())
    joined: dict[str, Any] = {}
    for name, values in columns.items():
        if name in fields.SECONDS and not isinstance(values[0], Tensor):
            joined[name] = [*chain.from_iterable(values)]
        elif name in ("input_features", "feature_attention_mask"):
            joined[name] = _join_audio(values)
        else:
            # Patches of crops stand side by side.
            joined[name] = torch.cat(values, -1 if by_crops and name in _PIXELS else 0)
    return joined


def _join_audio(values: Sequence[Tensor]) -> Tensor:
    """Return audio padded with 0 to as many frames as the longest has."""
    frames = max(value.shape[-1] for value in values)
    return torch.cat([pad(value, (0, frames - value.shape[-1])) for value in values])


def join_extra(samples: Sequence[Sample], how: Extra) -> dict[str, Any]:
    """Return what the samples hold besides, stacked or as lists, None where a sample has none."""
    names = dict.fromkeys(name for sample in samples for name in sample.extra)
    joined: dict[str, Any] = {}
    for name in names if how != "drop" else ():
        values = [sample.extra.get(name) for sample in samples]
        joined[name] = values if how == "list" else _stacked(name, values)
    return joined


def _stacked(name: str, values: Sequence[Any]) -> Tensor:
    stacked = []
    for index, value in enumerate(values):
        try:
            stacked.append(torch.as_tensor(value))
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name} of sample {index} cannot be stacked, got {type(value).__name__}: "
                "extra='list' keeps it as it is"
            ) from error
        if stacked[index].shape != stacked[0].shape:
            raise ValueError(
                f"{name} of sample {index} must have shape {tuple(stacked[0].shape)} to be "
                f"stacked, got {tuple(stacked[index].shape)}: extra='list' keeps it as it is"
            )
    return torch.stack(stacked)
