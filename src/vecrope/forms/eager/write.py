"""Positions as one cumulative sum of steps.

The step of a token is by how much each axis moves from it to the next token: 1 behind text, 0
behind a masked token, and as lines and frames ask within a group, whose last token steps to where
the group's advance leads. So the steps of a group depend on its item alone, and are laid out once
for all groups of an item.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat, zip_longest
from operator import mul, sub
from struct import Struct

import torch
from torch import Tensor

from vecrope.forms.eager.items import Items
from vecrope.forms.eager.parts import Parts

# How steps are kept, by the largest of them: bytes, dtype, and how one is packed.
_STEPS: tuple[tuple[int, int, torch.dtype, Callable[[int], bytes]], ...] = (
    # By their numbers, negative ones too.
    (2**7 - 1, 1, torch.int8, [bytes([number]) for number in range(256)].__getitem__),
    (2**15 - 1, 2, torch.int16, Struct("h").pack),
    (2**31 - 1, 4, torch.int32, Struct("i").pack),
)
# An operator on more elements is spread over torch's threads. Where cores are busy, waiting for
# them costs more than the operator.
_GRAIN = 32768


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
    interrupted = any(parts.before)
    jumps = _jumps(parts, bounds, None if interrupted else padding_value)
    steps = _steps(parts, bounds[-1], mask)
    # Axis by axis where torch would start its threads for all three at once.
    apart = bounds[-1] <= _GRAIN < 3 * bounds[-1] and torch.get_num_threads() > 1
    if apart:
        positions = torch.empty(steps.shape, dtype=dtype, device="cpu")
        for axis, each in zip(positions.unbind(), steps.unbind(), strict=True):
            axis.copy_(each)
    else:
        positions = steps.to(dtype, memory_format=torch.contiguous_format)
    if jumps:
        at, moves = (array("q", numbers) for numbers in zip(*jumps, strict=True))
        index = torch.frombuffer(at, dtype=torch.int64)
        move = torch.frombuffer(moves, dtype=torch.int64).to(dtype)
        for axis in positions.unbind():
            axis.index_add_(0, index, move)
    for summed in positions.unbind() if apart else (positions,):
        summed.cumsum_(-1)
    if interrupted:
        # At masked tokens inside of a group the axes differ.
        assert mask is not None
        positions.masked_fill_(mask.logical_not(), padding_value)
    return positions


def _steps(parts: Parts, num_tokens: int, kept: Tensor | None) -> Tensor:
    """Return (3, N) int8, int16 or int32: a 0, and the steps of all tokens but the last."""
    items, item = parts.items, parts.item
    frames = [
        [*map(sub, times[1:], times)] if len(times) > 1 else [] for times in items.offsets or ()
    ]
    further = map(sub, items.extent, items.advance)
    largest = max(chain(items.advance, items.height, items.width, further, *frames), default=0)
    _, size, dtype, pack = next(widths for widths in _STEPS if largest <= widths[0])
    if kept is None:
        gaps = map(sub, [*parts.starts, num_tokens], [0, *parts.stops])
        between = [*map(mul, repeat(pack(1)), gaps)]
    else:
        buffer = bytearray(num_tokens * size)
        torch.frombuffer(buffer, dtype=dtype).copy_(kept)
        text = bytes(buffer)
        edges = zip([0, *parts.stops], [*parts.starts, num_tokens], strict=True)
        between = [text[size * stop : size * start] for stop, start in edges]
    interrupted = any(parts.before)
    joined = bytearray()
    of_items = [*zip(*_steps_of_items(items, frames, pack, {*item}), strict=True)] or [()] * 6
    for heads, tails in zip(of_items[::2], of_items[1::2], strict=True):
        of_axis = [b""] * (3 * len(item) + 1)
        of_axis[::3] = between
        if interrupted:
            sizes = zip(item, parts.before, parts.starts, parts.stops, strict=True)
            of_axis[1::3] = [
                (heads[at] + tails[at])[size * done : size * (done + stop - start)]
                for at, done, start, stop in sizes
            ]
        else:
            of_axis[1::3] = map(heads.__getitem__, item)
            of_axis[2::3] = map(tails.__getitem__, item)
        joined += pack(0)
        joined += b"".join(of_axis)
    return torch.frombuffer(joined, dtype=dtype).view(3, -1)[:, :num_tokens]


def _steps_of_items(
    items: Items, frames: Sequence[Sequence[int]], pack: Callable[[int], bytes], used: set[int]
) -> Iterator[tuple[bytes, ...]]:
    """Yield the steps of a group of each item in time, height and width, each of them cut in two.

    The second of the two are the steps of the last line, or in time of the last token. `frames` are
    the steps between the frames of each item; empty where all are 1. Items that are not used, which
    may be of any size, get none.
    """
    zero, one = pack(0), pack(1)
    sizes = zip(items.depth, items.height, items.width, items.advance, items.extent, strict=True)
    for number, (each, between) in enumerate(zip_longest(sizes, frames)):
        if number not in used:
            yield (b"",) * 6
            continue
        depth, height, width, advance, extent = each
        still, across = zero * (width - 1), one * (width - 1)
        time = frame = zero * (height * width - 1)
        rows = (still + one) * (height - 1)
        if depth > 1:
            rows = (rows + still + pack(1 - height)) * (depth - 1) + rows
            if between is None:
                time = (frame + one) * (depth - 1) + frame
            else:
                time = frame.join([b"", *map(pack, between), b""])
        columns = (across + pack(1 - width)) * (depth * height - 1)
        yield (
            *(time, pack(advance - extent + 1)),
            *(rows, still + pack(advance - height + 1)),
            *(columns, across + pack(advance - width + 1)),
        )


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
