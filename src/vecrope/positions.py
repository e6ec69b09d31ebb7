"""The segment table expanded to the positions of any tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope.segments import Segments


def positions_at(segments: Segments, index: Tensor) -> Tensor:
    """Return the (3, ...) positions of the tokens at `index` (...), each from its segment's row."""
    segment = torch.searchsorted(segments.starts, index, right=True) - 1
    origin, *layout = _columns(segments)[:, segment].unbind()
    return _locate(index - origin, *layout)


def _columns(segments: Segments) -> Tensor:
    return torch.stack(
        (
            segments.origin,
            segments.base,
            segments.width,
            segments.height,
            segments.in_group,
            segments.span,
        )
    )


def _locate(
    place: Tensor, base: Tensor, width: Tensor, height: Tensor, in_group: Tensor, span: Tensor
) -> Tensor:
    """Return the (3, ...) positions of places within items, counted off row by row."""
    row = place // width
    frame = row // height
    group = frame // in_group
    anchor = base + group * span
    return torch.stack(
        (
            anchor + (frame - group * in_group),
            anchor + (row - frame * height),
            anchor + (place - row * width),
        )
    )
