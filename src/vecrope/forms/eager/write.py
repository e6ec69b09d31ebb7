"""Positions as one cumulative sum of ones, corrected at lines, first tokens and behind groups.

From token to token, text counts up on every axis. Within a group the width axis does, but for the
first token of a line, which returns to the first column; height counts up at the lines, and
returns where a frame begins; time moves on where a frame begins. The first token of a group counts
up on every axis, and the token behind a group stands where the advance of the group says.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, chain, repeat
from operator import add, mul, sub
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.forms.eager.batch import Batch
from vecrope.forms.eager.find import Found
from vecrope.forms.eager.groups import host_tensor
from vecrope.forms.eager.items import Items
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
    lines = _few_lines(found) if found.groups.many is None else _many_lines(found)
    time, height, width = positions.unbind()
    if found.placeholders is not None:
        time.index_fill_(0, found.placeholders, 0)
        height.index_fill_(0, found.placeholders, 0)
    width.index_copy_(0, lines.at, lines.width.to(dtype))
    if lines.height is None:
        height.index_fill_(0, lines.at, 1)
    else:
        height.index_copy_(0, lines.at, lines.height.to(dtype))
    if lines.time is not None:
        time.index_copy_(0, lines.at, lines.time.to(dtype))
    positions.index_fill_(1, found.first, 1)
    ends, behind = found.last + 1, lines.behind
    if found.reaches(num_tokens):
        behind = behind * (ends < num_tokens)
        ends = ends.clamp(max=num_tokens - 1)
    positions.index_add_(1, ends, behind.to(dtype))


def _few_lines(found: Found) -> Lines:
    """Lay the lines out on the host."""
    groups, items = found.groups, found.groups.items
    height, width = groups.of(items.height), groups.of(items.width)
    area, advance = groups.of(items.area), groups.of(items.advance)
    tall = [*map(mul, groups.of(items.depth), height)]
    gaps = found.placeholders is not None
    begins = [0, *accumulate(area)][:-1] if gaps else found.first.tolist()
    stops = [*map(add, begins, area)]
    columns = [
        [*chain.from_iterable(map(range, begins, stops, width))],
        [*chain.from_iterable(map(repeat, [1 - columns for columns in width], tall))],
    ]
    if items.deep:
        moves = zip(*_frame_moves(items), strict=True)
        columns += [[*chain.from_iterable(groups.of(axis))] for axis in moves]
    at, *steps = torch.tensor(columns, device="cpu").unbind()
    behind = [[*map(sub, advance, side)] for side in (groups.of(items.extent), height, width)]
    return Lines(
        at if found.placeholders is None else found.placeholders[at],
        steps[0],
        steps[1] if items.deep else None,
        steps[2] if items.deep else None,
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


def _many_lines(found: Found) -> Lines:
    """Lay the lines out as tensors."""
    groups, items = found.groups, found.groups.items
    assert groups.many is not None
    _, area, tall, advance, base, _, height, width = groups.many.table.unbind()
    starts = tall.cumsum(0) - tall
    group = torch.zeros(groups.num_lines, dtype=torch.int64, device="cpu")
    group = group.index_fill_(0, starts[1:], 1).cumsum_(0)
    line = torch.arange(groups.num_lines, device="cpu") - starts[group]
    columns = width[group]
    begins = found.first if found.placeholders is None else area.cumsum(0) - area
    at = torch.addcmul(begins[group], line, columns)
    rows = time = None
    if items.deep:
        side = height[group]
        frame = line // side
        begins_frame = line == frame * side
        rows = 1 - side * begins_frame
        time = begins_frame.to(torch.int64)
        if items.offsets is not None:
            steps = [[0, *items.steps(item)][:frames] for item, frames in enumerate(items.depth)]
            table = host_tensor(chain.from_iterable(steps))
            time *= table[base[group] + frame]
    return Lines(
        at if found.placeholders is None else found.placeholders[at],
        1 - columns,
        rows,
        time,
        advance - groups.many.table[5:],
    )


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
