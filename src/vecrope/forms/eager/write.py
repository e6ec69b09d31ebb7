"""Positions as one cumulative sum of steps.

The step of a token is by how much each axis moves from it to the next token: 1 behind text, 0
behind a masked token, and as lines and frames ask within a group, whose last token steps to where
the group's advance leads.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, compress
from operator import add, eq, sub
from typing import Any

import torch
from torch import Tensor

from vecrope.forms.eager.groups import Ints, Parts, make_parts

# An operator on more elements is spread over torch's threads. Where cores are busy, waiting for
# them costs more than the operator.
_GRAIN = 32768

_Maker = Callable[[Iterable[int]], Any]
# How steps are kept, by the largest of them: the dtype as which they are read, the bits of a number
# that are written, and what makes a bytearray or an array, which have the same operators, of such
# bits, and of one number that may be negative.
_STEPS: tuple[tuple[int, torch.dtype, int, _Maker, Callable[[int], Any]], ...] = (
    (2**7 - 1, torch.int8, 255, bytearray, [bytearray((n,)) for n in range(256)].__getitem__),
    (2**15 - 1, torch.int16, 2**16 - 1, partial(array, "H"), lambda n: array("H", (n % 2**16,))),
    (2**31 - 1, torch.int32, 2**32 - 1, partial(array, "I"), lambda n: array("I", (n % 2**32,))),
)


def write_positions(
    parts: Parts,
    bounds: Ints,
    dtype: torch.dtype,
    padding_value: int = 0,
    *,
    text_row: bool = False,
) -> Tensor:
    """Return the positions (3, N) of all tokens, at least one, in int64 or int32.

    Rows start at `bounds`, of which N is the last. Masked tokens hold the padding value. With
    `text_row`, where none is masked, the number of each token in its row is in front.
    """
    num_tokens = bounds[-1]
    if any(parts.before):
        whole = write_positions(*_without_masked(parts, bounds), dtype)
        kept = bytearray(b"\1") * num_tokens
        for start, stop in zip(*parts.masked, strict=True):
            kept[start:stop] = bytes(stop - start)
        positions = whole.new_full((3, num_tokens), padding_value)
        return positions.masked_scatter_(torch.frombuffer(kept, dtype=torch.bool), whole)
    steps = _steps(parts, num_tokens)
    # Axis by axis where torch would start its threads for all at once.
    apart = num_tokens <= _GRAIN < steps.numel() and torch.get_num_threads() > 1
    if apart or text_row:
        positions = steps.new_empty((3 + text_row, num_tokens), dtype=dtype)
        axes = positions[-3:]
        parted = zip(axes.unbind(), steps.unbind(), strict=True) if apart else ((axes, steps),)
        for written, read in parted:
            written.copy_(read)
    else:
        positions = axes = steps.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if jumps := _jumps(parts, bounds, padding_value):
        at, moves = (array("q", numbers) for numbers in zip(*jumps, strict=True))
        move = torch.frombuffer(moves, dtype=torch.int64).to(dtype).expand(3, -1)
        axes.index_add_(1, torch.frombuffer(at, dtype=torch.int64), move)
    for summed in axes.unbind() if apart else (axes,):
        summed.cumsum_(-1)
    if text_row:
        lengths = [*map(sub, bounds[1:], bounds)]
        text = torch.arange(max(lengths), dtype=dtype, device="cpu")
        torch.cat([text[:length] for length in lengths], out=positions[0])
    return positions


def _without_masked(parts: Parts, bounds: Ints) -> tuple[Parts, list[int]]:
    """Return the groups and the bounds of a batch as they are without its masked tokens."""
    area = parts.items.area
    through = map(add, parts.before, map(sub, parts.stops, parts.starts))
    is_last = [*map(eq, through, map(area.__getitem__, parts.item))]
    item = [*compress(parts.item, is_last)]
    stops = parts.kept_before([*compress(parts.stops, is_last)])
    starts = [*map(sub, stops, map(area.__getitem__, item))]
    whole = make_parts(parts.items, starts, stops, item, [0] * len(item))
    return whole, parts.kept_before(bounds)


def _steps(parts: Parts, num_tokens: int) -> Tensor:
    """Return (3, N) int8, int16 or int32: a 0, and the steps of all but the last."""
    items = parts.items
    further = map(sub, items.extent, items.advance)
    most = max(chain(items.advance, items.height, items.width, further, *items.between), default=0)
    _, dtype, bits, of, only = next(width for width in _STEPS if most <= width[0])
    zero, one = only(0), only(1)
    # All text at first, then with groups that do not move, then with the ends of their lines.
    columns = one * (num_tokens + 1)
    columns[0] = 0
    for start, stop in zip(*parts.masked, strict=True):
        columns[start + 1 : stop + 1] = zero * (stop - start)
    time = columns[:]
    for start, stop in zip(parts.starts, parts.stops, strict=True):
        time[start + 1 : stop + 1] = zero * (stop - start)
    rows = time[:]
    sides = items.depth, items.height, items.width, items.advance, items.extent, items.between
    sizes = [*zip(*sides, strict=True)]
    groups = zip(map(sizes.__getitem__, parts.item), parts.starts, parts.stops, strict=True)
    for (depth, height, width, advance, extent, frames), start, stop in groups:
        lines, num_lines = slice(start + width, stop, width), depth * height - 1
        columns[lines] = only(1 - width) * num_lines
        rows[lines] = one * num_lines
        if depth > 1:
            ends = slice(start + height * width, stop, height * width)
            rows[ends] = only(1 - height) * (depth - 1)
            time[ends] = of(frames) if frames else one * (depth - 1)
        time[stop] = advance - extent + 1 & bits
        rows[stop] = advance - height + 1 & bits
        columns[stop] = advance - width + 1 & bits
    for row in (rows, columns):
        time += row
    return torch.frombuffer(time, dtype=dtype).view(-1, num_tokens + 1)[:, :num_tokens]


def _jumps(parts: Parts, bounds: Ints, padding_value: int) -> list[tuple[int, int]]:
    """Return at which tokens positions move by more than a step, and by how much more.

    It is where a row starts, and where masked runs, which are not inside of groups, start and stop.
    """
    num_tokens, running = bounds[-1], parts.running(bounds)
    jumps = [*zip(bounds[1:-1], map(sub, running, running[1:]), strict=False)]
    starts, stops = parts.masked
    for start, stop, position in zip(starts, stops, parts.running(starts), strict=True):
        jump = padding_value - position + running[bisect_right(bounds, start) - 1]
        jumps += (start, jump), (stop, -jump)
    return [(at, jump) for at, jump in jumps if at < num_tokens]
