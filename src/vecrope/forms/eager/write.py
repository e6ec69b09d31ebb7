"""Positions as one cumulative sum of ones, corrected at lines, first tokens and behind groups.

From token to token, text counts up on every axis. Within a group the width axis does, but for the
first token of a line, which returns to the first column; height counts up at the lines, and
returns where a frame begins; time moves on where a frame begins. The first token of a group counts
up on every axis, and the token behind a group stands where the advance of the group says.
"""

from __future__ import annotations

from itertools import accumulate, chain, repeat
from operator import add, sub
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.forms.eager.batch import Batch
from vecrope.forms.eager.find import Found
from vecrope.forms.eager.groups import host_tensor


class Lines(NamedTuple):
    """The lines of all groups. What is said of a group's first token is overwritten."""

    at: Tensor  # (L,) index of each line's first token
    width: Tensor  # (L,) what the width axis moves by there
    behind: Tensor  # (3, G) what each axis moves by behind a group, on top of what text does


class Frames(NamedTuple):
    """The frames of groups that have several, but for the first of each group."""

    at: Tensor  # (F,) index of each frame's first token
    height: Tensor  # (F,) what the height axis moves by there
    time: Tensor  # (F,) what the time axis moves by


def write_positions(
    batch: Batch,
    found: Found | None,
    row_ends: list[int],
    *,
    padding_value: int = 0,
    dtype: torch.dtype,
) -> Tensor:
    """Return the positions (3, N) of all tokens, at least one.

    Args:
        batch: the tokens, of which neither ids nor types are read.
        found: its groups; None: there are none.
        row_ends: the running position behind each row.
        padding_value: the position of masked tokens.
        dtype: of the positions.
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
        positions.masked_fill_(~batch.kept, padding_value)
    return positions


def _write_groups(positions: Tensor, found: Found) -> None:
    dtype, num_tokens = positions.dtype, positions.shape[1]
    lines = _few_lines(found) if found.groups.many is None else _many_lines(found)
    time, height, width = positions.unbind()
    if found.placeholders is not None:
        time.index_fill_(0, found.placeholders, 0)
        height.index_fill_(0, found.placeholders, 0)
    width.index_copy_(0, lines.at, lines.width.to(dtype))
    height.index_fill_(0, lines.at, 1)
    if found.groups.deep:
        frames = _frames(found)
        height.index_copy_(0, frames.at, frames.height.to(dtype))
        time.index_copy_(0, frames.at, frames.time.to(dtype))
    positions.index_fill_(1, found.first, 1)
    ends, behind = found.last + 1, lines.behind
    if found.reaches(num_tokens):
        behind = behind * (ends < num_tokens)
        ends = ends.clamp(max=num_tokens - 1)
    positions.index_add_(1, ends, behind.to(dtype))


def _few_lines(found: Found) -> Lines:
    """Lay the lines out on the host."""
    groups, items = found.groups, found.groups.items
    height, width, tall = map(groups.of, (items.height, items.width, groups.tall))
    area, advance, extent = map(groups.of, (items.area, items.advance, items.extent))
    begins = _begins(found)
    at, moves = torch.tensor(
        [
            [*chain.from_iterable(map(range, begins, map(add, begins, area), width))],
            [*chain.from_iterable(map(repeat, [1 - columns for columns in width], tall))],
        ],
        device="cpu",
    ).unbind()
    behind = [[*map(sub, advance, side)] for side in (extent, height, width)]
    return Lines(found.token(at), moves, torch.tensor(behind, device="cpu"))


def _many_lines(found: Found) -> Lines:
    """Lay the lines out as tensors."""
    groups = found.groups
    assert groups.many is not None
    _, area, tall, advance, _, _, width = groups.many.table.unbind()
    starts = tall.cumsum(0) - tall
    group = torch.zeros(groups.num_lines, dtype=torch.int64, device="cpu")
    group = group.index_fill_(0, starts[1:], 1).cumsum_(0)
    line = torch.arange(groups.num_lines, device="cpu") - starts[group]
    columns = width[group]
    begins = found.first if found.placeholders is None else area.cumsum(0) - area
    at = torch.addcmul(begins[group], line, columns)
    return Lines(found.token(at), 1 - columns, advance - groups.many.table[4:])


def _frames(found: Found) -> Frames:
    """Lay out the frames of groups that have several, on the host: lines are many more."""
    groups, items = found.groups, found.groups.items
    numbers = groups.few if groups.many is None else groups.many.item.tolist()
    assert numbers is not None
    at: list[int] = []
    height: list[int] = []
    time: list[int] = []
    for begin, item in zip(_begins(found), numbers, strict=True):
        frames = items.depth[item]
        if frames == 1:
            continue
        size = items.area[item] // frames
        at.extend(range(begin + size, begin + frames * size, size))
        height.extend([1 - items.height[item]] * (frames - 1))
        time.extend(items.steps(item))
    index, *moves = host_tensor(chain(at, height, time)).view(3, -1).unbind()
    return Frames(found.token(index), *moves)


def _begins(found: Found) -> list[int]:
    """Return (G,) where each group begins: its first token's index, or that token's rank."""
    if found.placeholders is None:
        first: list[int] = found.first.tolist()
        return first
    groups = found.groups
    area = groups.of(groups.items.area) if groups.many is None else groups.many.area.tolist()
    return [0, *accumulate(area)][:-1]


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
