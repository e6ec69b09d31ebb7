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
from itertools import chain, pairwise, repeat
from operator import mul, sub
from struct import Struct

import torch
from torch import Tensor

from vecrope.forms.eager.items import Items
from vecrope.forms.eager.parts import MASKED_RUN, Parts

# Steps are at most as large as the largest side or advance.
_MOST_IN_A_BYTE = 127


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
    positions = _steps(parts, bounds[-1]).to(dtype, memory_format=torch.contiguous_format)
    interrupted = any(parts.before)
    jumps = _jumps(parts, bounds, None if mask is None or interrupted else padding_value)
    if jumps:
        numbers = torch.frombuffer(array("q", chain(*jumps)), dtype=torch.int64)
        at, moves = numbers.view(-1, 2).unbind(1)
        positions.index_add_(1, at, moves.to(dtype).expand(3, -1))
    positions.cumsum_(1)
    if interrupted:
        # The axes differ at such masked tokens.
        assert mask is not None
        positions.masked_fill_(mask.to("cpu").reshape(-1).eq(0), padding_value)
    return positions


def _steps(parts: Parts, num_tokens: int) -> Tensor:
    """Return (3, N) int8 or int32: a 0, and the steps of all tokens but the last."""
    items = parts.items
    largest = max(chain(items.advance, items.extent, items.height, items.width), default=0)
    number, dtype = Struct("i"), torch.int32
    if largest <= _MOST_IN_A_BYTE:
        number, dtype = Struct("b"), torch.int8
    zero, one = number.pack(0), number.pack(1)
    of_item = {
        item: (b"",) * 3 if item == MASKED_RUN else _steps_of(items, item, number.pack)
        for item in set(parts.item)
    }
    others = _masked_and_cut(parts)
    gaps = map(sub, [*parts.starts, num_tokens], [0, *parts.stops])
    text = [*map(mul, repeat(one), gaps)]
    pieces = []
    for groups in [*zip(*map(of_item.__getitem__, parts.item), strict=True)] or [()] * 3:
        steps = [*groups]
        for at, before, tokens in others:
            of_all = steps[at] or zero * tokens
            steps[at] = of_all[before * number.size : (before + tokens) * number.size]
        pieces += [zero, *chain.from_iterable(zip(text, steps, strict=False)), text[-1]]
    numbers = torch.frombuffer(bytearray().join(pieces), dtype=dtype)
    return numbers.view(3, -1)[:, :num_tokens]


def _masked_and_cut(parts: Parts) -> list[tuple[int, int, int]]:
    """Return which parts are masked or no whole group, with their `before` and their tokens."""
    area = [*parts.items.area, 0]
    numbers = zip(parts.starts, parts.stops, parts.item, parts.before, strict=True)
    return [
        (at, before, stop - start)
        for at, (start, stop, item, before) in enumerate(numbers)
        if stop - start != area[item]
    ]


def _steps_of(items: Items, item: int, pack: Callable[[int], bytes]) -> tuple[bytes, bytes, bytes]:
    """Return the steps of a group's tokens in time, height and width."""
    depth, height, width = items.depth[item], items.height[item], items.width[item]
    advance = items.advance[item]
    zero, one = pack(0), pack(1)
    times = range(depth) if items.offsets is None else items.offsets[item]
    still = zero * (height * width - 1)
    time = b"".join(still + pack(after - at) for at, after in pairwise([*times, advance]))
    line = zero * (width - 1)
    down = (line + one) * (height - 1) + line
    rows = (down + pack(1 - height)) * (depth - 1) + down + pack(advance - height + 1)
    across = one * (width - 1)
    columns = (across + pack(1 - width)) * (depth * height - 1) + across
    return time, rows, columns + pack(advance - width + 1)


def _jumps(parts: Parts, bounds: Sequence[int], padding_value: int | None) -> list[tuple[int, int]]:
    """Return at which tokens all axes move by more than a step, and by how much more.

    It is where a row starts, and where masked runs start and stop if there is a padding value.
    """
    num_tokens, running = bounds[-1], parts.running(bounds)
    jumps = [*zip(bounds[1:-1], map(sub, running, running[1:]), strict=False)]
    if padding_value is not None:
        for at, item in enumerate(parts.item):
            if item == MASKED_RUN:
                start = parts.starts[at]
                row = bisect_right(bounds, start) - 1
                jump = padding_value - (start + parts.moved[at] - running[row])
                jumps += (start, jump), (parts.stops[at], -jump)
    return [(at, jump) for at, jump in jumps if at < num_tokens]
