"""Prompts of families that share the rule: as a processor lays them out, and hostile soup."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from hypothesis import strategies as st

from vecrope.spec import MRopeSpec
from vecrope.testing.prompt import Prompt, Seconds
from vecrope.testing.reference import IMAGE, TEXT
from vecrope.testing.strategies.layout import (
    Grid,
    Segment,
    all_of,
    any_grid,
    lines_of,
    pad,
    patches,
    replaced,
    text,
)

_FLOATS = (torch.float32, torch.float64)


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
    """Draw a prompt as the family's processor lays it out; the reference accepts every one of them.

    A row is a list of text, images (`<II>`) and videos, padded on the left, on the right, on both
    sides or not at all. Without padding the mask may be absent. A video is `[<II>t<II>t]`, a
    timestamp after each frame, where markers tell it from images and frames are separate (GLM);
    `t<VV>t<VV>`, a timestamp before each frame, where it has placeholders of its own (Qwen3-VL);
    and `[IIII]` or `<VVVV>` where all of it is one block. In many prompts all images and frames
    are of one size, as a processor of fixed resolution makes them. Where the family spaces frames
    by seconds, they are absent, a list or a tensor. Shrinks towards one row of one text token.

    Args:
        draw: given by hypothesis.
        spec: the rules under which the prompt is read.
        max_rows: the largest B.
        max_segments: the most texts, images and videos in a row.
        max_side: the largest height and width of an image or a frame, in tokens.
        max_text: the most tokens of a text.
        touching: whether images, and frames, may follow each other with nothing in between. Where
            upstreams go by runs of one token type, they fail on such rows. With the marker rule
            `"adjacent"` there is always a marker in between.
    """
    touching = touching and spec.marker_rule != "adjacent"
    side = st.integers(1, max_side)
    size = draw(st.none() | st.tuples(side, side))
    sizes = st.tuples(side, side) if size is None else st.just(size)
    depths = st.integers(1, 3) if size is None and spec.multi_frame_images else st.just(1)
    segment = text(max_text)
    if spec.image_token_id is not None:
        segment |= _image(depths, sizes, touching)
    if spec.video_token_id is not None or spec.video_start_token_id is not None:
        segment |= _video(spec, sizes, touching)
    row = st.lists(segment, min_size=1, max_size=max_segments)
    rows = draw(st.lists(row, min_size=1, max_size=max_rows))

    lines, mask = pad(draw, lines_of(rows))
    videos = _video_patches(draw, spec, all_of(rows, "videos"))
    return Prompt.from_symbols(
        spec,
        lines,
        mask=mask,
        image_grid_thw=patches(spec, all_of(rows, "images")) or None,
        video_grid_thw=videos or None,
        second_per_grid_ts=draw(_seconds(spec, len(videos))),
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

    Rows are pieces in any order: a text token, a marker, up to six placeholders of one kind, or
    runs of them of one length, each with a text token or a marker after it. Rows without any
    unmasked token occur. Shrinks towards one row of one text token.

    Args:
        draw: given by hypothesis.
        spec: the rules under which the prompt is read.
        max_rows: the largest B.
        max_pieces: the most pieces in a row.
        fit: whether the grids are made to fit the tokens that the mask leaves, so that the
            reference accepts every prompt; with the marker rule `"adjacent"` every run of
            placeholders then has its marker. Otherwise grids and seconds are then dropped, replaced
            and added, ill-formed ones among them, and the reference refuses more than half of the
            prompts.
        touching: whether one run of placeholders may take two grids. Upstreams fail on that, or,
            with the marker rule `"adjacent"`, it is never done.
        zero_grids: whether grids of zeros, which are no items, may stand among the others.
    """
    adjacent = spec.marker_rule == "adjacent"
    touching = touching and not adjacent
    piece = _piece(spec, marked=adjacent and fit)
    pieces = draw(
        st.lists(st.lists(piece, min_size=1, max_size=max_pieces), min_size=1, max_size=max_rows)
    )
    seq_len = max(len("".join(row)) for row in pieces)
    rows = ["".join(row).ljust(seq_len, "t") for row in pieces]
    mask = draw(st.none() | st.tuples(*(_mask(row, seq_len) for row in pieces)))

    images: list[Grid] = []
    videos: list[Grid] = []
    # In place of the number of frames, 1, one that frames have in common if they may be joined.
    frames: list[Grid] = []
    apart = 0
    for kind, length in _visual_runs(spec, rows, mask):
        cut = draw(st.integers(0, length - 1)) if touching else 0
        for place, tokens in enumerate(filter(None, (cut, length - cut))):
            apart += place * (not spec.frames_may_touch)
            if kind == IMAGE:
                images.append(
                    draw(_grid_of(tokens, max_t=tokens if spec.multi_frame_images else 1))
                )
            elif not spec.separate_frames:
                videos.append(draw(_grid_of(tokens, max_t=tokens)))
            else:
                again = bool(frames) and frames[-1][1] * frames[-1][2] == tokens
                again = again and draw(st.booleans())
                _, h, w = frames[-1] if again else draw(_grid_of(tokens, max_t=1))
                frames.append((apart, h, w))
    for (_, h, w), run in groupby(frames):
        left = len(list(run))
        while left:
            t = draw(st.integers(1, left))
            videos.append((t, h, w))
            left -= t

    given: list[list[Grid] | None] = []
    for grids in (patches(spec, images), _video_patches(draw, spec, videos)):
        if zero_grids:
            for index in draw(st.lists(st.integers(0, len(grids)), max_size=2)):
                grids.insert(index, (0, 0, 0))
        if not fit:
            grids = replaced(draw, grids, any_grid(spec))
        absent = not grids and not draw(st.booleans())
        given.append(None if absent else grids)
    number = len(given[1] or ())
    seconds = _seconds(spec, number) if fit else _any_seconds(spec, number)
    return Prompt.from_symbols(
        spec,
        rows,
        mask=mask,
        image_grid_thw=given[0],
        video_grid_thw=given[1],
        second_per_grid_ts=draw(seconds),
    )


@st.composite
def _image(
    draw: st.DrawFn,
    depths: st.SearchStrategy[int],
    sizes: st.SearchStrategy[tuple[int, int]],
    touching: bool,
) -> Segment:
    grid = st.tuples(depths, sizes).map(lambda drawn: (drawn[0], *drawn[1]))
    grids = draw(st.lists(grid, min_size=1, max_size=3 if touching else 1))
    return Segment("<" + "".join("I" * (t * h * w) for t, h, w in grids) + ">", images=(*grids,))


@st.composite
def _video(
    draw: st.DrawFn,
    spec: MRopeSpec,
    sizes: st.SearchStrategy[tuple[int, int]],
    touching: bool,
) -> Segment:
    t = draw(st.integers(1, 3))
    h, w = draw(sizes)
    symbol = "I" if spec.video_token_id is None else "V"
    before, after = "[]" if spec.video_token_id is None else "<>"
    may_touch = touching and spec.frames_may_touch
    if not spec.separate_frames or (may_touch and draw(st.booleans())):
        symbols = before + symbol * (t * h * w) + after
    else:
        frame = "<" + symbol * (h * w) + ">"
        stamps = [
            "t" * length for length in draw(st.lists(st.integers(1, 3), min_size=t, max_size=t))
        ]
        if spec.video_token_id is None:
            symbols = before + "".join(frame + stamp for stamp in stamps) + after
        else:
            symbols = "".join(stamp + frame for stamp in stamps)
    return Segment(symbols, videos=((t, h, w),))


def _piece(spec: MRopeSpec, *, marked: bool) -> st.SearchStrategy[str]:
    """Draw a text token, a marker, or placeholders: where `marked`, each run behind its marker."""
    symbols = "t"
    if spec.video_start_token_id is not None:
        symbols += "[[]"
    if spec.vision_start_token_id is not None:
        symbols += "<>"
    symbol = st.sampled_from(symbols)
    ids = {"I": spec.image_token_id, "V": spec.video_token_id}
    placeholders = [placeholder for placeholder, token_id in ids.items() if token_id is not None]
    if not placeholders:
        return symbol
    kinds = st.sampled_from(placeholders)
    if spec.vision_start_token_id is None:
        befores = st.just("")
    else:
        befores = st.just("<") if marked else st.sampled_from(["<", "<", ""])
    run = st.tuples(befores, kinds, st.integers(1, 6)).map(
        lambda drawn: drawn[0] + drawn[1] * drawn[2]
    )
    runs = st.tuples(befores, kinds, st.integers(1, 3), symbol, st.integers(2, 3)).map(
        lambda drawn: (drawn[0] + drawn[1] * drawn[2] + drawn[3]) * drawn[4]
    )
    return symbol | run | runs


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
    if spec.mask_rule == "ignore":
        mask = None
    runs = []
    for index, types in enumerate(prompt.mm_token_type_ids.tolist()):
        kept = [kind for i, kind in enumerate(types) if mask is None or mask[index][i] == "1"]
        runs += [(kind, len(list(run))) for kind, run in groupby(kept) if kind != TEXT]
    return runs


@st.composite
def _grid_of(draw: st.DrawFn, tokens: int, *, max_t: int) -> Grid:
    t = draw(st.sampled_from([n for n in range(1, min(max_t, tokens) + 1) if tokens % n == 0]))
    h = draw(st.sampled_from([n for n in range(1, tokens // t + 1) if tokens // t % n == 0]))
    return t, h, tokens // t // h


def _video_patches(draw: st.DrawFn, spec: MRopeSpec, grids: Sequence[Grid]) -> list[Grid]:
    """Undo both merges; frames that are too few to be merged may be left over."""
    merge = spec.temporal_merge_size
    rests = [draw(st.integers(0, merge - 1)) if merge > 1 else 0 for _ in grids]
    whole = patches(spec, grids)
    return [(t * merge + rest, h, w) for (t, h, w), rest in zip(whole, rests, strict=True)]


def _seconds(spec: MRopeSpec, number: int) -> st.SearchStrategy[Seconds | None]:
    """Draw seconds as the family takes them: of the usual frame rates, or any."""
    if spec.video_time != "seconds":
        return st.none()
    rates = st.sampled_from([0.3, 1.0, 2.0, 3.0, 23.976, 24.0, 25.0, 30.0]).map(lambda fps: 2 / fps)
    value = st.sampled_from([1.0, 0.5, 0.0, 0.08]) | rates | st.floats(0, 10)
    absent = st.none() if spec.default_seconds is not None or not number else st.nothing()
    values = st.lists(value, min_size=number, max_size=number)
    return absent | values | st.builds(_tensor, values, st.sampled_from(_FLOATS))


def _any_seconds(spec: MRopeSpec, number: int) -> st.SearchStrategy[Seconds | None]:
    if spec.video_time != "seconds":
        return st.none()
    fitting = _seconds(spec, number)
    value = st.sampled_from([1.0, 0.5, -0.5, float("nan"), float("inf")])
    values = st.lists(value, min_size=max(number - 1, 0), max_size=number + 1)
    return (
        fitting | fitting | fitting | values | st.builds(_tensor, values, st.sampled_from(_FLOATS))
    )


def _tensor(values: list[float], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)
