"""Prompts for hypothesis: conversations as a processor lays them out, and hostile token soup."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from hypothesis import strategies as st

from vecrope.spec import MRopeSpec
from vecrope.testing.prompt import Prompt
from vecrope.testing.reference import IMAGE, TEXT

__all__ = ["conversations", "token_soup"]

Grid = tuple[int, int, int]


class _Segment(NamedTuple):
    symbols: str
    images: tuple[Grid, ...] = ()
    videos: tuple[Grid, ...] = ()


@st.composite
def conversations(
    draw: st.DrawFn,
    spec: MRopeSpec,
    *,
    max_rows: int = 3,
    max_segments: int = 4,
    max_side: int = 5,
    max_text: int = 4,
    touching: bool = False,
) -> Prompt:
    """Draw a prompt as GLM's processor lays it out; the reference accepts every one of them.

    A row is a list of text, images (`<II>`) and videos (`[<II>t<II>t]`, a timestamp after each
    frame), padded on the left, on the right, on both sides or not at all. Without padding the mask
    may be absent. In many prompts all images and frames are of one size, as a processor of fixed
    resolution makes them. Shrinks towards one row of one text token.

    Args:
        draw: given by hypothesis.
        spec: the rules under which the prompt is read.
        max_rows: the largest B.
        max_segments: the most texts, images and videos in a row.
        max_side: the largest height and width of an image or a frame, in tokens.
        max_text: the most tokens of a text.
        touching: whether images, and frames, may follow each other with nothing in between. Both
            upstreams fail on such rows.
    """
    side = st.integers(1, max_side)
    size = draw(st.none() | st.tuples(side, side))
    sizes = st.tuples(side, side) if size is None else st.just(size)
    depths = st.integers(1, 3) if size is None else st.just(1)
    segment = _text(max_text) | _image(depths, sizes, touching) | _video(sizes, touching)
    row = st.lists(segment, min_size=1, max_size=max_segments)
    rows = draw(st.lists(row, min_size=1, max_size=max_rows))

    lines = ["".join(segment.symbols for segment in row) for row in rows]
    seq_len = max(map(len, lines)) + draw(st.integers(0, 2))
    lefts = [draw(st.integers(0, seq_len - len(line))) for line in lines]
    mask = [
        ("0" * left + "1" * len(line)).ljust(seq_len, "0")
        for left, line in zip(lefts, lines, strict=True)
    ]
    explicit_mask = draw(st.booleans()) or any("0" in line for line in mask)
    return Prompt.from_symbols(
        spec,
        [("t" * left + line).ljust(seq_len, "t") for left, line in zip(lefts, lines, strict=True)],
        mask=mask if explicit_mask else None,
        image_grid_thw=_patches(spec, [g for row in rows for s in row for g in s.images]) or None,
        video_grid_thw=_patches(spec, [g for row in rows for s in row for g in s.videos]) or None,
    )


@st.composite
def token_soup(
    draw: st.DrawFn,
    spec: MRopeSpec,
    *,
    max_rows: int = 3,
    max_pieces: int = 8,
    fit: bool = True,
    touching: bool = False,
    zero_grids: bool = False,
) -> Prompt:
    """Draw a hostile prompt: stray placeholders, unbalanced markers, a mask with any holes.

    Rows are pieces in any order: a text token, a video start, a video end, up to six image tokens,
    or image runs of one length, each with one of the former three after it. Rows without any
    unmasked token occur. Shrinks towards one row of one text token.

    Args:
        draw: given by hypothesis.
        spec: the rules under which the prompt is read.
        max_rows: the largest B.
        max_pieces: the most pieces in a row.
        fit: whether the grids are made to fit the tokens that the mask leaves, so that the
            reference accepts every prompt. Otherwise grids are then dropped, replaced and added,
            ill-formed ones among them, and the reference refuses more than half of the prompts.
        touching: whether one run of image tokens may take two grids. Both upstreams fail on that.
        zero_grids: whether grids of zeros, which are no items, may stand among the others.
    """
    pieces = draw(
        st.lists(st.lists(_piece(), min_size=1, max_size=max_pieces), min_size=1, max_size=max_rows)
    )
    seq_len = max(len("".join(row)) for row in pieces)
    rows = ["".join(row).ljust(seq_len, "t") for row in pieces]
    mask = draw(st.none() | st.tuples(*(_mask(row, seq_len) for row in pieces)))

    images: list[Grid] = []
    frames: list[Grid] = []
    for kind, length in _visual_runs(spec, rows, mask):
        cut = draw(st.integers(0, length - 1)) if touching else 0
        for tokens in filter(None, (cut, length - cut)):
            if kind == IMAGE:
                images.append(draw(_grid_of(tokens, max_t=tokens)))
            else:
                again = bool(frames) and frames[-1][1] * frames[-1][2] == tokens
                again = again and draw(st.booleans())
                frames.append(frames[-1] if again else draw(_grid_of(tokens, max_t=1)))
    videos: list[Grid] = []
    for (_, h, w), run in groupby(frames):
        left = len(list(run))
        while left:
            t = draw(st.integers(1, left))
            videos.append((t, h, w))
            left -= t

    given: list[list[Grid] | None] = []
    for grids in (_patches(spec, images), _patches(spec, videos)):
        if zero_grids:
            for index in draw(st.lists(st.integers(0, len(grids)), max_size=2)):
                grids.insert(index, (0, 0, 0))
        if not fit:
            start = draw(st.integers(0, len(grids)))
            stop = start + draw(st.integers(0, 1))
            grids[start:stop] = draw(st.lists(_any_grid(spec), max_size=2))
        absent = not grids and not draw(st.booleans())
        given.append(None if absent else grids)
    return Prompt.from_symbols(
        spec, rows, mask=mask, image_grid_thw=given[0], video_grid_thw=given[1]
    )


def _text(max_length: int) -> st.SearchStrategy[_Segment]:
    return st.integers(1, max_length).map(lambda length: _Segment("t" * length))


@st.composite
def _image(
    draw: st.DrawFn,
    depths: st.SearchStrategy[int],
    sizes: st.SearchStrategy[tuple[int, int]],
    touching: bool,
) -> _Segment:
    grid = st.tuples(depths, sizes).map(lambda drawn: (drawn[0], *drawn[1]))
    grids = draw(st.lists(grid, min_size=1, max_size=3 if touching else 1))
    return _Segment("<" + "".join("I" * (t * h * w) for t, h, w in grids) + ">", images=(*grids,))


@st.composite
def _video(draw: st.DrawFn, sizes: st.SearchStrategy[tuple[int, int]], touching: bool) -> _Segment:
    t = draw(st.integers(1, 3))
    h, w = draw(sizes)
    if touching and draw(st.booleans()):
        frames = "I" * (t * h * w)
    else:
        stamps = st.lists(st.integers(1, 3), min_size=t, max_size=t)
        frames = "".join("<" + "I" * (h * w) + ">" + "t" * length for length in draw(stamps))
    return _Segment(f"[{frames}]", videos=((t, h, w),))


def _piece() -> st.SearchStrategy[str]:
    symbol = st.sampled_from("t[[]")
    image = st.integers(1, 6).map(lambda length: "I" * length)
    frames = st.tuples(st.integers(1, 3), symbol, st.integers(2, 3)).map(
        lambda drawn: ("I" * drawn[0] + drawn[1]) * drawn[2]
    )
    return symbol | image | frames


def _mask(pieces: Sequence[str], seq_len: int) -> st.SearchStrategy[str]:
    """Keep all tokens of a row, whole pieces of it, any of its tokens, or none."""
    lengths = [len(piece) for piece in pieces]
    lengths.append(seq_len - sum(lengths))
    flags = st.tuples(*(st.sampled_from("110") for _ in lengths))
    whole = flags.map(
        lambda drawn: "".join(flag * length for flag, length in zip(drawn, lengths, strict=True))
    )
    holes = st.lists(st.sampled_from("110"), min_size=seq_len, max_size=seq_len).map("".join)
    return st.just("1" * seq_len) | whole | holes | st.just("0" * seq_len)


def _visual_runs(
    spec: MRopeSpec, rows: Sequence[str], mask: Sequence[str] | None
) -> list[tuple[int, int]]:
    prompt = Prompt.from_symbols(spec, rows, mask=mask)
    assert prompt.mm_token_type_ids is not None
    runs = []
    for index, types in enumerate(prompt.mm_token_type_ids.tolist()):
        kept = [kind for i, kind in enumerate(types) if mask is None or mask[index][i] == "1"]
        runs += [(kind, len(list(run))) for kind, run in groupby(kept) if kind != TEXT]
    return runs


@st.composite
def _grid_of(draw: st.DrawFn, tokens: int, *, max_t: int) -> Grid:
    t = draw(st.sampled_from([n for n in range(1, max_t + 1) if tokens % n == 0]))
    h = draw(st.sampled_from([n for n in range(1, tokens // t + 1) if tokens // t % n == 0]))
    return t, h, tokens // t // h


def _any_grid(spec: MRopeSpec) -> st.SearchStrategy[Grid]:
    merge = spec.spatial_merge_size
    small = st.integers(1, 3)
    sound = st.tuples(small, small, small).map(lambda grid: _patches(spec, [grid])[0])
    side = st.integers(-1, 2 * merge)
    return sound | st.just((0, 0, 0)) | st.tuples(st.integers(-1, 2), side, side)


def _patches(spec: MRopeSpec, grids: Sequence[Grid]) -> list[Grid]:
    merge = spec.spatial_merge_size
    return [(t, h * merge, w * merge) for t, h, w in grids]
