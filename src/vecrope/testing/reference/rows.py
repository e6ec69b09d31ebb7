"""What the references of all families share: the loop over rows, grids, float32 and refusals."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

TEXT, IMAGE, VIDEO = 0, 1, 2

Rows = Sequence[Sequence[int]]
Position = tuple[Any, ...]
# The positions, A axes of B rows of T, and the deltas, B rows of 1.
Answer = tuple[list[list[list[Any]]], list[list[Any]]]


class Refusal(ValueError):  # noqa: N818 - it is an answer of the reference, not a fault of it
    """The prompt has no positions: its tokens, grids or mask contradict each other."""


class Grid(NamedTuple):
    """Frames, rows and columns of an image or a video in tokens, and the grid that says so."""

    number: int
    source: str
    t: int
    h: int
    w: int

    def cells(self, base: int) -> list[Position]:
        """Return the positions of a block whose three axes begin at `base`, row by row."""
        return [
            (base + f, base + y, base + x)
            for f in range(self.t)
            for y in range(self.h)
            for x in range(self.w)
        ]


def number_rows(
    input_ids: Rows,
    attention_mask: Rows | None,
    number_row: Callable[[int, list[int], list[int]], tuple[Sequence[Position], Any]],
    *,
    num_axes: int = 3,
    padding_value: int,
    delta_length: str = "valid",
) -> Answer:
    """Number the unmasked tokens of every row, and write them to their places.

    Args:
        input_ids: B rows of T token ids.
        attention_mask: B rows of T values, 1 for a token and 0 for none, or None: all are tokens.
        number_row: takes the index of a row, those of its unmasked tokens and their ids; returns
            the position of each of these, and the position at which decoding goes on.
        num_axes: the numbers of a position.
        padding_value: the position of masked tokens.
        delta_length: what deltas are measured against, the `"padded"` or the `"valid"` length.
    """
    axes: list[list[list[Any]]] = [[] for _ in range(num_axes)]
    rope_deltas = []
    for row, ids in enumerate(input_ids):
        mask = [1] * len(ids) if attention_mask is None else attention_mask[row]
        kept = [index for index, value in enumerate(mask) if value]
        positions, following = number_row(row, kept, [ids[index] for index in kept])
        for axis in range(num_axes):
            line: list[Any] = [padding_value] * len(ids)
            for index, position in zip(kept, positions, strict=True):
                line[index] = position[axis]
            axes[axis].append(line)
        rope_deltas.append([following - len(ids if delta_length == "padded" else kept)])
    return axes, rope_deltas


def next_position(positions: Sequence[Position]) -> Any:
    """Return the largest position of any axis plus one."""
    return max((max(position) for position in positions), default=-1) + 1


def grids_of(name: str, grid_thw: Rows | None, merge: int) -> Iterator[Grid]:
    """Yield each grid that is not of zeros, its sides in tokens.

    Raises:
        Refusal: for a grid that is not positive, or not divisible by `merge`.
    """
    for index, (t, h, w) in enumerate(grid_thw or ()):
        source = f"{name}[{index}] = ({t}, {h}, {w})"
        if t == h == w == 0:
            continue
        if min(t, h, w) < 1:
            raise Refusal(f"{source} must be positive throughout, or zero throughout")
        if h % merge or w % merge:
            raise Refusal(f"{source} must have h and w divisible by spatial_merge_size {merge}")
        yield Grid(index, source, t, h // merge, w // merge)


def take_grid(grids: Iterator[Grid], ids: Sequence[int], start: int, row: int) -> Grid:
    """Take the next grid, for as many equal tokens from `start` on as it asks for."""
    grid = next(grids, None)
    if grid is None:
        raise Refusal(f"row {row} has tokens that no grid is left for")
    tokens = grid.t * grid.h * grid.w
    if list(ids[start : start + tokens]) != [ids[start]] * tokens:
        raise Refusal(f"row {row} ends a run inside {grid.source}")
    return grid


def refuse_left_over(*pending: Iterator[Grid]) -> None:
    """Refuse a batch of which a grid was not taken."""
    for grids in pending:
        for grid in grids:
            raise Refusal(f"{grid.source} is left over: no token in any row belongs to it")


def float32(value: float) -> float:
    """Round to the nearest float32."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
