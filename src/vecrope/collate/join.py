"""Rows and media of all samples as the tensors of one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.collate import fields
from vecrope.collate.media import read_tensor
from vecrope.collate.samples import Column, Samples

PaddingSide = Literal["left", "right"]
Extra = Literal["stack", "list", "drop"]

_PIXELS = frozenset(fields.PIXELS.values())


class Padding:
    """Room before and behind each row of a batch.

    Args:
        before: tokens of padding before each row.
        behind: likewise behind it.
    """

    def __init__(self, before: Sequence[int], behind: Sequence[int]) -> None:
        self.before, self.behind = before, behind
        self._filled: dict[int, Sequence[Tensor]] = {}
        # With empty tensors among them, `cat` would be three times as slow.
        self._sizes = [*filter(None, chain.from_iterable(zip(before, behind, strict=True)))]

    def join(self, rows: list[Tensor], value: int) -> Tensor:
        """Return (..., T) rows one behind the other, (..., N), with a value in the room."""
        if not self._sizes:
            return torch.cat(rows, -1)
        if value not in self._filled:
            filled = torch.full((sum(self._sizes),), value, device="cpu")
            self._filled[value] = filled.split_with_sizes(self._sizes)
        pieces = self._filled[value]
        if rows[0].dim() > 1:
            pieces = [piece.to(rows[0]).expand(*rows[0].shape[:-1], -1) for piece in pieces]
        padding, joined = iter(pieces), []
        for row, before, behind in zip(rows, self.before, self.behind, strict=True):
            if before:
                joined.append(next(padding))
            joined.append(row)
            if behind:
                joined.append(next(padding))
        return torch.cat(joined, -1)


def join_media(columns: Mapping[str, Column], joined: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return grids, seconds, pixels and audio of all samples, in their order.

    Some may have been `joined` before.
    """
    by_crops = any(name in columns for name in fields.CROPS.values())
    media: dict[str, Any] = {}
    for name, column in columns.items():
        values = [*column.values()]
        if name in joined:
            media[name] = joined[name]
        elif name in fields.SECONDS and not isinstance(values[0], Tensor):
            media[name] = [*chain.from_iterable(values)]
        elif name in ("input_features", "feature_attention_mask"):
            media[name] = _join_audio(values)
        else:
            # Patches of crops stand side by side.
            media[name] = torch.cat(values, -1 if by_crops and name in _PIXELS else 0)
    return media


def _join_audio(values: Sequence[Tensor]) -> Tensor:
    """Return audio padded with 0 to as many frames as the longest has."""
    frames = max(value.shape[-1] for value in values)
    return torch.cat([pad(value, (0, frames - value.shape[-1])) for value in values])


def join_extra(samples: Samples, how: Extra) -> dict[str, Any]:
    """Return what the samples hold besides, stacked or as lists, None where a sample has none."""
    joined: dict[str, Any] = {}
    for name, column in samples.extra.items() if how != "drop" else ():
        values = [column.get(index) for index in range(len(samples))]
        joined[name] = values if how == "list" else _stacked(name, values, samples.names)
    return joined


def _stacked(name: str, values: Sequence[Any], names: Sequence[str]) -> Tensor:
    stacked: list[Tensor] = []
    for who, value in zip(names, values, strict=True):
        try:
            tensor = read_tensor(value, name, who)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}: extra='list' keeps it as it is") from error
        stacked.append(tensor)
        shape, like = (tuple(tensor.shape), tensor.device), stacked[0]
        if shape != (tuple(like.shape), like.device):
            raise ValueError(
                f"{name} of {who} must have shape {tuple(like.shape)} on {like.device} to be "
                f"stacked, got {shape[0]} on {shape[1]}: extra='list' keeps it as it is"
            )
    return torch.stack(stacked)
