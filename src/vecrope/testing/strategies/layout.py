"""What the strategies of all families share: segments, and rows of them padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from hypothesis import strategies as st

from vecrope.spec import MRopeSpec

Grid = tuple[int, int, int]


class Segment(NamedTuple):
    """The symbols of a text, an image, a video or an audio, and the grids that come with them."""

    symbols: str
    images: tuple[Grid, ...] = ()
    videos: tuple[Grid, ...] = ()
    seconds: tuple[float, ...] = ()
    audios: tuple[int, ...] = ()


@cache
def text(max_length: int) -> st.SearchStrategy[Segment]:
    """Draw text tokens."""
    return st.integers(1, max_length).map(lambda length: Segment("t" * length))


def lines_of(rows: Sequence[Sequence[Segment]]) -> list[str]:
    """Return the symbols of each row."""
    return ["".join(segment.symbols for segment in row) for row in rows]


def all_of(rows: Sequence[Sequence[Segment]], name: str) -> list[Any]:
    """Return the grids, or what `name` names, of all segments in their order."""
    return [value for row in rows for segment in row for value in getattr(segment, name)]


def pad(
    draw: st.DrawFn, lines: Sequence[str], masks: Sequence[str] | None = None
) -> tuple[list[str], list[str] | None]:
    """Pad rows on the left, on the right, on both sides or not at all, to one length.

    Args:
        draw: given by hypothesis.
        lines: the symbols of each row.
        masks: the mask of each row; None: all are tokens.

    Returns:
        The rows and their masks, or None in place of some masks without a zero.
    """
    masks = masks or ["1" * len(line) for line in lines]
    seq_len = max(map(len, lines)) + draw(st.integers(0, 2))
    lefts = [draw(st.integers(0, seq_len - len(line))) for line in lines]
    padded = [
        ("0" * left + mask).ljust(seq_len, "0") for left, mask in zip(lefts, masks, strict=True)
    ]
    explicit = draw(st.booleans()) or any("0" in mask for mask in padded)
    rows = [
        ("t" * left + line).ljust(seq_len, "t") for left, line in zip(lefts, lines, strict=True)
    ]
    return [row.ljust(seq_len, "t") for row in rows], padded if explicit else None


def patches(spec: MRopeSpec, grids: Sequence[Grid]) -> list[Grid]:
    """Return grids of tokens as grids of patches."""
    merge = spec.spatial_merge_size
    return [(t, h * merge, w * merge) for t, h, w in grids]


@cache
def any_grid(spec: MRopeSpec) -> st.SearchStrategy[Grid]:
    """Draw a grid in patches: a sound one, one of zeros, or an ill-formed one."""
    small = st.integers(1, 3)
    sound = st.tuples(small, small, small).map(lambda grid: patches(spec, [grid])[0])
    side = st.integers(-1, 2 * spec.spatial_merge_size)
    return sound | st.just((0, 0, 0)) | st.tuples(st.integers(-1, 2), side, side)


def replaced(draw: st.DrawFn, values: Sequence[Any], other: st.SearchStrategy[Any]) -> list[Any]:
    """Drop, replace or add values at one place."""
    changed = list(values)
    start = draw(st.integers(0, len(changed)))
    stop = start + draw(st.integers(0, 1))
    changed[start:stop] = draw(st.lists(other, max_size=2))
    return changed
