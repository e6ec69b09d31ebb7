"""Positions as one cumulative sum of steps.

The step of a token is by how much each axis moves from it to the next token: 1 behind text, 0
behind a masked token, and as lines and frames ask within a group, whose last token steps to where
the group's advance leads. So the steps of a group depend on its item alone, and are laid out once
for all groups of an item.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from operator import sub
from struct import Struct

import torch
from torch import Tensor

from vecrope.forms.eager.items import Items
from vecrope.forms.eager.parts import Parts

# Steps are at most as large as the largest side or advance.
_MOST_IN_A_BYTE = 127
# By their numbers, as signed ones.
_BYTES = [bytes([number]) for number in range(256)]


def write_positions(
    parts: Parts,
    bounds: Sequence[int],
    dtype: torch.dtype,
    mask: Tensor | None = None,
    padding_value: int = 0,
) -> Tensor:
    """Return the positions (3, N) of all tokens, at least one.

    Args:
        parts: of the batch.
        bounds: where each row starts in the batch, then N.
        dtype: of the positions, int64 or int32.
        mask: of N tokens, 0 for a masked one; None: none is.
        padding_value: the position of masked tokens.
    """
    if mask is not None:
        mask = mask.to("cpu", torch.bool).reshape(-1)
    steps = _steps(parts, bounds[-1], mask)
    positions = steps.to(dtype, memory_format=torch.contiguous_format)
    interrupted = any(parts.before)
    jumps = _jumps(parts, bounds, None if interrupted else padding_value)
    if jumps:
        at, moves = (array("q", numbers) for numbers in zip(*jumps, strict=True))
        index = torch.frombuffer(at, dtype=torch.int64)
        move = torch.frombuffer(moves, dtype=torch.int64).to(dtype)
        for axis in positions.unbind():
            axis.index_add_(0, index, move)
    positions.cumsum_(1)
    if interrupted:
        # At masked tokens inside of a group the axes differ.
        assert mask is not None
        positions.masked_fill_(mask.logical_not(), padding_value)
    return positions


def _steps(parts: Parts, num_tokens: int, kept: Tensor | None) -> Tensor:
    """Return (3, N) int8 or int32: a 0, and the steps of all tokens but the last."""
    items = parts.items
    largest = max(chain(items.advance, items.extent, items.height, items.width), default=0)
    narrow = largest <= _MOST_IN_A_BYTE
    pack, size = (_BYTES.__getitem__, 1) if narrow else (Struct("i").pack, 4)
    dtype = torch.int8 if narrow else torch.int32
    text = pack(1) * num_tokens
    if kept is not None:
        buffer = bytearray(num_tokens * size)
        torch.frombuffer(buffer, dtype=dtype).copy_(kept)
        text = bytes(buffer)
    gaps = zip([0, *parts.stops], [*parts.starts, num_tokens], strict=True)
    between = [text[size * stop : size * start] for stop, start in gaps]
    of_item = {item: _steps_of(items, item, pack) for item in set(parts.item)}
    groups: list[tuple[bytes, ...]] = [*map(of_item.__getitem__, parts.item)]
    if any(parts.before):
        sizes = zip(groups, parts.before, parts.starts, parts.stops, strict=True)
        groups = [
            tuple(steps[size * done : size * (done + stop - start)] for steps in group)
            for group, done, start, stop in sizes
        ]
    pieces = [b""] * (2 * len(groups) + 1)
    pieces[::2] = between
    joined = bytearray()
    for axis in range(3):
        pieces[1::2] = [steps[axis] for steps in groups]
        joined += pack(0)
        joined += b"".join(pieces)
    return torch.frombuffer(joined, dtype=dtype).view(3, -1)[:, :num_tokens]


def _steps_of(items: Items, item: int, pack: Callable[[int], bytes]) -> tuple[bytes, bytes, bytes]:
    """Return the steps of a group's tokens in time, height and width."""
    depth, height, width = items.depth[item], items.height[item], items.width[item]
    time_end, row_end, column_end = (
        pack(items.advance[item] - extent + 1) for extent in (items.extent[item], height, width)
    )
    zero, one = pack(0), pack(1)
    across, still = one * (width - 1), zero * (width - 1)
    columns = (across + pack(1 - width)) * (depth * height - 1) + across + column_end
    rows = (still + one) * (height - 1) + still
    time = zero * (height * width - 1)
    if depth > 1:
        times = range(depth) if items.offsets is None else items.offsets[item]
        rows = (rows + pack(1 - height)) * (depth - 1) + rows
        time = b"".join([time + pack(end - at) for at, end in pairwise(times)]) + time
    return time + time_end, rows + row_end, columns


def _jumps(parts: Parts, bounds: Sequence[int], padding_value: int | None) -> list[tuple[int, int]]:
    """Return at which tokens all axes move by more than a step, and by how much more.

    It is where a row starts, and where masked runs start and stop if there is a padding value.
    """
    num_tokens, running = bounds[-1], parts.running(bounds)
    jumps = [*zip(bounds[1:-1], map(sub, running, running[1:]), strict=False)]
    if padding_value is not None:
        starts, stops = parts.masked
        for start, stop, position in zip(starts, stops, parts.running(starts), strict=True):
            jump = padding_value - position + running[bisect_right(bounds, start) - 1]
            jumps += (start, jump), (stop, -jump)
    return [(at, jump) for at, jump in jumps if at < num_tokens]
