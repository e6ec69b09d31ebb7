"""The positions of an omni prompt laid out on the host, entry after entry.

Each position is one sum of a base and a whole number, rounded as that sum is. The sums of an entry
are few, since its frames repeat them, and are made for all entries at once; the rest is bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, repeat
from operator import mul
from struct import Struct, unpack

import torch
from torch import Tensor

Cut = tuple[int, int]
# A block of frames and the tokens that count up from its base, which are its sound, or all there is
# of text, markers and audio: base, in a block of rows and columns; height and width of a frame in
# tokens, 0 without frames; positions of the frames in time; cuts: how many tokens of the frames,
# and how many that count up, stand before each place at which the latter are followed by a frame,
# and, always, before the end.
Entry = tuple[float, int, int, Sequence[float], Sequence[Cut]]
_Axes = tuple[list[bytes | memoryview], ...]


def write_entries(entries: Sequence[Entry], dtype: torch.dtype) -> Tensor:
    """Return the positions (3, N) of the tokens of entries, at least one.

    Args:
        entries: in the order of the tokens.
        dtype: int64 or float32.
    """
    code, size = ("f", 4) if dtype == torch.float32 else ("q", 8)
    pack, cell = Struct(code).pack, f"{size}s"
    counted = [max(height, width, cuts[-1][1]) for _, height, width, _, cuts in entries]
    upwards = memoryview(bytearray(size * max(counted)))
    torch.arange(max(counted), out=torch.frombuffer(upwards, dtype=dtype), device="cpu")
    ends = [*accumulate(map(mul, counted, repeat(size)), initial=0)]
    sums = bytearray().join(map(mul, (pack(entry[0]) for entry in entries), counted))
    numbers = bytearray().join([upwards[: size * count] for count in counted])
    torch.frombuffer(sums, dtype=dtype).add_(torch.frombuffer(numbers, dtype=dtype))
    of_entries = map(memoryview(sums).__getitem__, map(slice, ends, ends[1:]))
    axes: _Axes = ([], [], [])
    time, rows, columns = axes
    for (_, height, width, frames, cuts), counts in zip(entries, of_entries, strict=True):
        if not height:
            time.append(counts)
            rows.append(counts)
            columns.append(counts)
            continue
        lines = unpack(cell * height, counts[: size * height])
        down = b"".join(map(mul, lines, repeat(width)))
        across = bytes(counts[: size * width]) * height
        still = map(mul, map(pack, frames), repeat(height * width))
        if cuts[-1][1]:
            before = _between_cuts([*still], down, across, [end for end, _ in cuts], size)
            heard = [size * sound for _, sound in cuts]
            sounds = [*map(counts.__getitem__, map(slice, (0, *heard), heard))]
            for axis, pieces in zip(axes, before, strict=True):
                axis += chain.from_iterable(zip(pieces, sounds, strict=True))
            continue
        time += still
        rows += [down] * len(frames)
        columns += [across] * len(frames)
    return torch.frombuffer(bytearray().join(chain(*axes)), dtype=dtype).view(3, -1)


def _between_cuts(
    still: list[bytes], down: bytes, across: bytes, cuts: list[int], size: int
) -> list[list[bytes]]:
    """Return, of each axis, what the frames of a block have before each cut, from cut to cut."""
    columns = still, [down] * len(still), [across] * len(still)
    if cuts == [*range(0, cuts[-1] + 1, len(down) // size)]:
        return [[b"", *frames] for frames in columns]
    parts = [*map(slice, (size * cut for cut in (0, *cuts)), (size * cut for cut in cuts))]
    return [[frames[part] for part in parts] for frames in map(b"".join, columns)]
