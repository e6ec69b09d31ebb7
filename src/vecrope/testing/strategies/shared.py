"""Prompts of families that share the rule: as a processor lays them out, and hostile soup."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
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
    side = st.integers(1, max_side)
    size = draw(st.none() | st.tuples(side, side))
    touching = touching and spec.marker_rule != "adjacent"
    row = _row(spec, size, max_segments, max_side, max_text, touching)
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
    mask = [_mask(draw, row, seq_len) for row in pieces] if draw(st.booleans()) else None

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
                images.append(draw(_grids_of(tokens, flat=not spec.multi_frame_images)))
            elif not spec.separate_frames:
                videos.append(draw(_grids_of(tokens, flat=False)))
            else:
                again = bool(frames) and frames[-1][1] * frames[-1][2] == tokens
                again = again and draw(st.booleans())
                _, h, w = frames[-1] if again else draw(_grids_of(tokens, flat=True))
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
        # Drawn first: a choice fewer would count as simpler.
        absent = not draw(st.booleans()) and not grids
        given.append(None if absent else grids)
    number = len(given[1] or ())
    return Prompt.from_symbols(
        spec,
        rows,
        mask=mask,
        image_grid_thw=given[0],
        video_grid_thw=given[1],
        second_per_grid_ts=draw(_seconds(spec, number, fit=fit)),
    )


# A strategy is cached where it is the same for many prompts: to make one takes longer than to draw.
@cache
def _row(
    spec: MRopeSpec,
    size: tuple[int, int] | None,
    max_segments: int,
    max_side: int,
    max_text: int,
    touching: bool,
) -> st.SearchStrategy[list[Segment]]:
    """Draw the segments of a row, whose images and frames are of one size where one is given."""
    side = st.integers(1, max_side)
    sizes = st.tuples(side, side) if size is None else st.just(size)
    segment = text(max_text)
    if spec.image_token_id is not None:
        depths = st.integers(1, 3) if size is None and spec.multi_frame_images else st.just(1)
        grid = st.tuples(depths, sizes).map(lambda drawn: (drawn[0], *drawn[1]))
        segment |= st.lists(grid, min_size=1, max_size=3 if touching else 1).map(_image)
    if spec.video_token_id is not None or spec.video_start_token_id is not None:
        stamps = st.lists(st.integers(1, 3), min_size=1, max_size=3)
        joined = st.booleans() if touching and spec.frames_may_touch else st.just(False)
        segment |= st.tuples(stamps, sizes, joined).map(lambda drawn: _video(spec, *drawn))
    return st.lists(segment, min_size=1, max_size=max_segments)


def _image(grids: Sequence[Grid]) -> Segment:
    return Segment("<" + "".join("I" * (t * h * w) for t, h, w in grids) + ">", images=(*grids,))


def _video(spec: MRopeSpec, stamps: Sequence[int], size: tuple[int, int], joined: bool) -> Segment:
    """Return a video of a frame for each timestamp, `joined` where none stands between them."""
    t, (h, w) = len(stamps), size
    symbol = "I" if spec.video_token_id is None else "V"
    before, after = "[]" if spec.video_token_id is None else "<>"
    frame = "<" + symbol * (h * w) + ">"
    if joined or not spec.separate_frames:
        symbols = before + symbol * (t * h * w) + after
    elif spec.video_token_id is None:
        symbols = before + "".join(frame + "t" * length for length in stamps) + after
    else:
        symbols = "".join("t" * length + frame for length in stamps)
    return Segment(symbols, videos=((t, h, w),))


@cache
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


def _mask(draw: st.DrawFn, pieces: Sequence[str], seq_len: int) -> str:
    """Keep all tokens of a row, whole pieces of it, any of its tokens, or none."""
    kept = draw(st.sampled_from(("all", "pieces", "tokens", "none")))
    if kept in ("all", "none"):
        return ("1" if kept == "all" else "0") * seq_len
    lengths = [len(piece) for piece in pieces] if kept == "pieces" else [1] * seq_len
    lengths.append(seq_len - sum(lengths))
    # A list of as many flags takes a draw for each of them.
    drawn = draw(st.binary(min_size=len(lengths), max_size=len(lengths)))
    flags = ("110"[byte % 3] for byte in drawn)
    return "".join(flag * length for flag, length in zip(flags, lengths, strict=True))


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


@cache
def _grids_of(tokens: int, *, flat: bool) -> st.SearchStrategy[Grid]:
    """Draw a grid of so many tokens, of one frame where `flat`."""
    divisors = [n for n in range(1, tokens + 1) if tokens % n == 0]
    grids = [(t, h, tokens // t // h) for t in divisors for h in divisors if tokens // t % h == 0]
    return st.sampled_from([grid for grid in grids if grid[0] == 1 or not flat])


def _video_patches(draw: st.DrawFn, spec: MRopeSpec, grids: Sequence[Grid]) -> list[Grid]:
    """Undo both merges; frames that are too few to be merged may be left over."""
    merge = spec.temporal_merge_size
    rests = [draw(st.integers(0, merge - 1)) if merge > 1 else 0 for _ in grids]
    whole = patches(spec, grids)
    return [(t * merge + rest, h, w) for (t, h, w), rest in zip(whole, rests, strict=True)]


@cache
def _seconds(
    spec: MRopeSpec, number: int, *, fit: bool = True
) -> st.SearchStrategy[Seconds | None]:
    """Draw seconds as the family takes them: of the usual frame rates, or any."""
    if spec.video_time != "seconds":
        return st.none()
    rates = st.sampled_from([0.3, 1.0, 2.0, 3.0, 23.976, 24.0, 25.0, 30.0]).map(lambda fps: 2 / fps)
    value = st.sampled_from([1.0, 0.5, 0.0, 0.08]) | rates | st.floats(0, 10)
    absent = st.none() if spec.default_seconds is not None or not number else st.nothing()
    fitting = absent | _listed(value, number, number)
    if fit:
        return fitting
    misfit = st.sampled_from([1.0, 0.5, -0.5, float("nan"), float("inf")])
    return fitting | fitting | fitting | _listed(misfit, max(number - 1, 0), number + 1)


def _listed(value: st.SearchStrategy[float], least: int, most: int) -> st.SearchStrategy[Seconds]:
    """Draw a list of such values, or a tensor of it."""
    values = st.lists(value, min_size=least, max_size=most)
    dtypes = st.sampled_from((torch.float32, torch.float64))
    return values | st.tuples(values, dtypes).map(
        lambda drawn: torch.tensor(drawn[0], dtype=drawn[1])
    )
