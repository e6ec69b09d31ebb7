"""Positions as one cumulative sum of ones, corrected at lines, first tokens and behind groups.

From token to token, text counts up on every axis. Within a group the width axis does, but for the
first token of a line, which returns to the first column; height counts up at the lines, and
returns where a frame begins; time moves on where a frame begins. The first token of a group counts
up on every axis, and the token behind a group stands where the advance of the group says.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, chain, repeat
from operator import mul, sub
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.core.search import spread
from vecrope.forms.eager.batch import Batch
from vecrope.forms.eager.find import Found
from vecrope.forms.eager.items import FEW, Items
from vecrope.spec import MRopeSpec


class Lines(NamedTuple):
    """The lines of all groups. What is said of a group's first token is overwritten."""

    at: Tensor  # (L,) index of each line's first token
    width: Tensor  # (L,) what the width axis moves by there
    height: Tensor | None  # (L,) what the height axis moves by; None: 1
    time: Tensor | None  # (L,) what the time axis moves by; None: 0
    behind: Tensor  # (3, G) what each axis moves by behind a group, on top of what text does


def write_positions(
    batch: Batch, spec: MRopeSpec, found: Found | None, dtype: torch.dtype, row_ends: list[int]
) -> Tensor:
    """Return the positions (3, N) of all tokens, at least one.

    Args:
        batch: the tokens.
        spec: the family's rules.
        found: its groups; None: there are none.
        dtype: of the positions.
        row_ends: the running position behind each row.
    """
    if found is None and batch.kept is None and batch.width is not None:
        row = torch.arange(batch.width, dtype=dtype, device="cpu")
        return row.repeat(3, batch.num_rows)
    positions = torch.empty((3, batch.num_tokens), dtype=dtype, device="cpu")
    text = None if found is None else found.text
    if text is not None:
        positions[:2].copy_(text)
    counted = positions if text is None else positions[2]
    if batch.kept is None:
        counted.fill_(1)
    else:
        counted.copy_(batch.kept)
    if found is not None:
        _write_groups(positions, found)
    _start_rows(positions, batch, row_ends)
    positions.cumsum_(1)
    if batch.kept is not None:
        positions.masked_fill_(~batch.kept, spec.padding_value)
    return positions


def _write_groups(positions: Tensor, found: Found) -> None:
    dtype, num_tokens = positions.dtype, positions.shape[1]
    items = found.items
    num_lines = sum(map(mul, items.groups, map(mul, items.depth, items.height)))
    lines = _few_lines(found) if num_lines <= FEW else _many_lines(found, num_lines)
    if found.placeholders is not None:
        positions[:2].index_fill_(1, found.placeholders, 0)
    positions[2].index_copy_(0, lines.at, lines.width.to(dtype))
    if lines.height is None:
        positions[1].index_fill_(0, lines.at, 1)
    else:
        positions[1].index_copy_(0, lines.at, lines.height.to(dtype))
    if lines.time is not None:
        positions[0].index_copy_(0, lines.at, lines.time.to(dtype))
    positions.index_fill_(1, found.first, 1)
    ends, behind = found.last + 1, lines.behind
    if int(found.last.amax()) == num_tokens - 1:
        behind = behind * (ends < num_tokens)
        ends = ends.clamp(max=num_tokens - 1)
    positions.index_add_(1, ends, behind.to(dtype))


def _few_lines(found: Found) -> Lines:
    """Lay the lines out on the host."""
    items, index = found.items, found.placeholders
    per_group = items.per_group
    height, width = per_group(items.height), per_group(items.width)
    area, advance = per_group(items.area), per_group(items.advance)
    tall = [*map(mul, per_group(items.depth), height)]
    begins = found.first.tolist() if index is None else [0, *accumulate(area)][:-1]
    stops = [begin + tokens for begin, tokens in zip(begins, area, strict=True)]
    columns = [
        [*chain.from_iterable(map(range, begins, stops, width))],
        [*chain.from_iterable(map(repeat, [1 - columns for columns in width], tall))],
    ]
    if items.deep:
        heights, times = zip(*_frame_moves(items), strict=True)
        columns += [[*chain.from_iterable(per_group(moves))] for moves in (heights, times)]
    at, *moves = torch.tensor(columns, device="cpu").unbind()
    behind = [[*map(sub, advance, sides)] for sides in (per_group(items.extent), height, width)]
    return Lines(
        at if index is None else index[at],
        moves[0],
        moves[1] if items.deep else None,
        moves[2] if items.deep else None,
        torch.tensor(behind, device="cpu"),
    )


def _frame_moves(items: Items) -> Iterator[tuple[list[int], list[int]]]:
    """Yield what height and time move by at every line of a group of each item."""
    for number, (frames, height) in enumerate(zip(items.depth, items.height, strict=True)):
        rows, time = [1] * (frames * height), [0] * (frames * height)
        if frames > 1:
            rows[height::height] = [1 - height] * (frames - 1)
            time[height::height] = items.steps(number)
        yield rows, time


def _many_lines(found: Found, num_lines: int) -> Lines:
    """Lay the lines out as tensors."""
    items, index = found.items, found.placeholders
    sizes = (items.area, items.height, items.width, items.depth, items.advance, items.extent)
    area, height, width, depth, advance, extent = items.spread(sizes).unbind()
    tall = depth * height
    group = spread(tall, num_lines)
    line = torch.arange(num_lines, device="cpu") - (tall.cumsum(0) - tall)[group]
    columns = width[group]
    begins = found.first if index is None else area.cumsum(0) - area
    at = torch.addcmul(begins[group], line, columns)
    rows = time = None
    if items.deep:
        side = height[group]
        frame = line // side
        begins_frame = line == frame * side
        rows = 1 - side * begins_frame
        time = begins_frame.to(torch.int64)
        if items.offsets is not None:
            steps = [
                [0, *items.steps(number)][:frames] for number, frames in enumerate(items.depth)
            ]
            base = [0, *accumulate(items.depth)][:-1]
            table = torch.tensor([*chain.from_iterable(steps)], device="cpu")
            time *= table[items.spread([base])[0][group] + frame]
    behind = torch.stack((advance - extent, advance - height, advance - width))
    return Lines(at if index is None else index[at], 1 - columns, rows, time, behind)


def _start_rows(positions: Tensor, batch: Batch, row_ends: list[int]) -> None:
    """Let every row count from 0, by what the rows before it have counted."""
    if batch.num_rows == 1:
        positions[:, 0].sub_(1)
        return
    last = batch.num_tokens - 1
    starts = [min(start, last) for start in batch.bounds[:-1]]
    counted = [1, *row_ends[:-1]]
    # A row that begins behind the last token has none.
    counted = [
        count if start <= last else 0 for count, start in zip(counted, batch.bounds, strict=False)
    ]
    at = torch.tensor(starts, device="cpu")
    shift = torch.tensor(counted, dtype=positions.dtype, device="cpu")
    positions.index_add_(1, at, shift.expand(3, -1), alpha=-1)
