"""Rows and media of all samples as the tensors of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.collate import fields
from vecrope.collate.samples import Sample

PaddingSide = Literal["left", "right"]
Extra = Literal["stack", "list", "drop"]


def join_rows(
    rows: Sequence[Tensor], value: int, before: Sequence[int], after: Sequence[int]
) -> Tensor:
    """Return (..., T) rows one behind the other, (..., N), with padding before and after each."""
    most = max((*before, *after))
    padding = rows[0].new_full((*rows[0].shape[:-1], most), value) if most else rows[0]
    pieces = []
    for row, left, right in zip(rows, before, after, strict=True):
        if left:
            pieces.append(padding[..., :left])
        pieces.append(row)
        if right:
            pieces.append(padding[..., :right])
    return torch.cat(pieces, -1)


def join_media(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return grids, seconds, pixels and audio of all samples, in their order."""
    joined: dict[str, Any] = {}
    crops = any(name in sample.media for sample in samples for name in fields.CROPS.values())
    names = dict.fromkeys(name for sample in samples for name in sample.media)
    for name in names:
        values = [sample.media[name] for sample in samples if name in sample.media]
        if name in fields.SECONDS:
            joined[name] = join_seconds(values)
        elif name in ("input_features", "feature_attention_mask"):
            joined[name] = _join_audio(values)
        else:
            by_columns = crops and name in fields.PIXELS.values()
            joined[name] = torch.cat(values, -1 if by_columns else 0)
    return joined


def _join_audio(values: Sequence[Tensor]) -> Tensor:
    """Return audio padded with 0 to as many frames as the longest has."""
    frames = max(value.shape[-1] for value in values)
    return torch.cat([pad(value, (0, frames - value.shape[-1])) for value in values])


def join_seconds(values: Sequence[Any]) -> Any:
    """Return the seconds of all videos, which all are tensors or all are lists."""
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    return [second for value in values for second in value]


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
