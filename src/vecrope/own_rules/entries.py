"""Positions laid out on the host: what the rules of single families have in common there.

Each position is one sum of a base and a whole number, rounded as that sum is; both are laid out as
bytes, once for each entry, and added up for all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from struct import Struct

import torch
from torch import Tensor

Cut = tuple[int, int]
# Tokens that count up from a base on all axes, or a block of frames, which may have sound: base,
# in a block of rows and columns; tokens; height and width of a frame in tokens, 0 where tokens
# count up; positions of the frames in time; cuts: of a block with sound, how many tokens of the
# frames, and how many of the sound, stand before each place at which sound is followed by a frame,
# and before its end.
Entry = tuple[float, int, int, int, Sequence[float], Sequence[Cut]]


def write_entries(entries: Sequence[Entry], dtype: torch.dtype) -> Tensor:
    """Return the positions (3, N) of the tokens of entries, at least one.

    Args:
        entries: in the order of the tokens.
        dtype: int64 or float32.
    """
    code, size = ("f", 4) if dtype == torch.float32 else ("q", 8)
    pack = Struct(code).pack
    numbers = bytearray(size * max(entry[1] for entry in entries))
    torch.arange(len(numbers) // size, out=torch.frombuffer(numbers, dtype=dtype))
    upwards = memoryview(numbers)
    rows = [*map(pack, range(max(entry[2] for entry in entries)))]
    # Whole numbers in time, height and width; what they are added to in time, and in space.
    columns: tuple[list[bytes | memoryview], ...] = ([], [], [], [], [])
    for base, tokens, height, width, times, cuts in entries:
        in_space = pack(base) * tokens
        if not height:
            counted = upwards[: size * tokens]
            pieces: tuple[bytes | memoryview, ...] = (counted, counted, counted, in_space, in_space)
        else:
            frames, in_frame = len(times), height * width
            still = bytes(size * frames * in_frame)
            down = b"".join([row * width for row in rows[:height]]) * frames
            across = bytes(upwards[: size * width]) * (frames * height)
            in_time = in_space
            if frames > 1 or times[0] != base:
                in_time = b"".join([pack(time) * in_frame for time in times])
            if cuts:
                _take_turns(columns, (still, down, across, in_time), upwards, in_space, cuts, size)
                continue
            pieces = (still, down, across, in_time, in_space)
        for column, piece in zip(columns, pieces, strict=True):
            column.append(piece)
    table = bytearray().join(chain(*columns, columns[-1]))
    return torch.add(*torch.frombuffer(table, dtype=dtype).view(2, 3, -1))


def _take_turns(
    columns: Sequence[list[bytes | memoryview]],
    of_frames: Sequence[bytes],
    upwards: memoryview,
    in_space: bytes,
    cuts: Sequence[Cut],
    size: int,
) -> None:
    """Add a block with sound to the columns of `write_entries`: frames and sound in their order."""
    (frames, sounds) = (
        [*map(slice, (0, *ends), ends)]
        for ends in ([size * cut[side] for cut in cuts] for side in (0, 1))
    )
    counted: list[bytes | memoryview] = [upwards[piece] for piece in sounds]
    constant: list[bytes | memoryview] = [in_space[piece] for piece in sounds]
    for column, values, heard in zip(
        columns, of_frames, (counted, counted, counted, constant), strict=False
    ):
        turns: list[bytes | memoryview] = [b""] * (2 * len(cuts))
        turns[::2] = map(values.__getitem__, frames)
        turns[1::2] = heard
        column += turns
    columns[4].append(in_space)
