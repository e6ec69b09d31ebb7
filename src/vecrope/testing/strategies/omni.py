"""Prompts of the omni families: as a processor lays them out, and hostile ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from hypothesis import strategies as st

from vecrope.spec import MRopeSpec
from vecrope.testing.prompt import Prompt
from vecrope.testing.rules import omni_reference
from vecrope.testing.sound import sound_block
from vecrope.testing.strategies.layout import (
    Grid,
    Segment,
    all_of,
    lines_of,
    pad,
    patches,
    replaced,
    text,
)

# Steps at usual and at unusual frame rates; few are fractions of two.
SECONDS = (1.0, 0.5, 0.75, 2 / 3, 0.08, 2 / 29.97, 2.0, 2 / 0.3, 0.001, 0.0)


@st.composite
def conversations(
    draw: st.DrawFn,
    spec: MRopeSpec,
    *,
    use_audio_in_video: bool | None = None,
    max_rows: int = 3,
    max_segments: int = 4,
    max_side: int = 3,
    max_frames: int = 6,
    max_text: int = 4,
    zeros: bool = False,
) -> Prompt:
    """Draw a prompt as the family's processor lays it out; the reference accepts every one of them.

    A row is a list of text, images (`<II>`), audio (`(AA)`) and videos (`<VV>`), or videos with
    their sound (`<(VVAVVA)>`), padded on either side or not at all, at times with masked tokens in
    between. Shrinks towards one row of one text token.

    Args:
        draw: given by hypothesis.
        spec: the rules under which the prompt is read.
        use_audio_in_video: whether videos have their sound; None: in some of the prompts.
        max_rows: the largest B.
        max_segments: the most texts, images, videos and audios in a row.
        max_side: the largest height and width of an image or a video, in tokens.
        max_frames: the most frames of a video.
        max_text: the most tokens of a text.
        zeros: whether grids and lengths of zeros, which are nothing, may stand among the others.
    """
    sound = draw(st.booleans()) if use_audio_in_video is None else use_audio_in_video
    image, audio, video, video_with_sound = _media(spec, max_side, max_frames)
    segment = st.one_of(text(max_text), image, audio, video_with_sound if sound else video)
    row = st.lists(segment, min_size=1, max_size=max_segments)
    rows = draw(st.lists(row, min_size=1, max_size=max_rows))
    lines, mask = _with_holes(draw, spec, lines_of(rows))
    return _prompt(draw, spec, rows, lines, mask, sound, zeros=zeros)


@st.composite
def token_soup(draw: st.DrawFn, spec: MRopeSpec, *, max_pieces: int = 6) -> Prompt:
    """Draw a hostile prompt: stray markers and placeholders, media dropped, added and exchanged.

    The reference refuses many of them.

    Args:
        draw: given by hypothesis.
        spec: the rules under which the prompt is read.
        max_pieces: the most pieces in a row.
    """
    whole = st.one_of(_media(spec, max_side=2, max_frames=3))
    stray = st.sampled_from("tttt<>()").map(Segment)
    placeholder = st.sampled_from("IVA").map(Segment)
    cut = st.tuples(whole, st.integers(0, 2), st.integers(0, 2)).map(
        lambda drawn: drawn[0]._replace(
            symbols=drawn[0].symbols[drawn[1] : len(drawn[0].symbols) - drawn[2]]
        )
    )
    pieces = [stray, whole, whole]
    if draw(st.booleans()):
        pieces += [cut, placeholder]
    piece = st.one_of(pieces)
    rows = draw(st.lists(st.lists(piece, min_size=1, max_size=max_pieces), min_size=1, max_size=2))
    lines, mask = _with_holes(draw, spec, lines_of(rows))
    if draw(st.integers(0, 3)) == 3:
        mask = [draw(st.text("1110", min_size=len(row), max_size=len(row))) for row in lines]
    return _prompt(draw, spec, rows, lines, mask, draw(st.booleans()), zeros=True, amiss=True)


@cache
def _media(
    spec: MRopeSpec, max_side: int, max_frames: int
) -> tuple[st.SearchStrategy[Segment], ...]:
    """Draw an image, an audio, a video, and a video with its sound."""
    side = st.integers(1, max_side)
    grid = st.tuples(st.integers(1, max_frames), side, side)
    seconds = st.sampled_from(SECONDS)
    # An audio length that gives at least one token and few of them.
    windows = omni_reference(spec).n_window is not None
    mel_frames = st.integers(1, 230) if windows else st.integers(3, 40)
    return (
        st.tuples(st.integers(1, 2), side, side).map(_image),
        mel_frames.map(lambda length: _audio(spec, length)),
        st.tuples(grid, seconds).map(lambda drawn: _video(*drawn)),
        st.tuples(grid, seconds, mel_frames).map(lambda drawn: _sound(spec, *drawn)),
    )


def _image(grid: Grid) -> Segment:
    return Segment(f"<{'I' * (grid[0] * grid[1] * grid[2])}>", images=(grid,))


def _video(grid: Grid, seconds: float) -> Segment:
    symbols = f"<{'V' * (grid[0] * grid[1] * grid[2])}>"
    return Segment(symbols, videos=(grid,), seconds=(seconds,))


def _audio(spec: MRopeSpec, length: int) -> Segment:
    # A video without frames is its sound alone.
    return Segment(f"({sound_block(spec, (0, 1, 1), 0.0, length)})", audios=(length,))


def _sound(spec: MRopeSpec, grid: Grid, seconds: float, length: int) -> Segment:
    symbols = f"<({sound_block(spec, grid, seconds, length)})>"
    return Segment(symbols, videos=(grid,), seconds=(seconds,), audios=(length,))


def _with_holes(
    draw: st.DrawFn, spec: MRopeSpec, lines: list[str]
) -> tuple[list[str], list[str] | None]:
    """Put masked tokens in between where they do not count, and pad."""
    masks = ["1" * len(line) for line in lines]
    for row in range(len(lines)):
        holes = draw(st.sampled_from((0, 0, 0, 1, 2))) if spec.mask_rule == "skip" else 0
        for _ in range(holes):
            place = draw(st.integers(0, len(lines[row])))
            hidden = draw(st.sampled_from("t<(IVA>"))
            lines[row] = lines[row][:place] + hidden + lines[row][place:]
            masks[row] = masks[row][:place] + "0" + masks[row][place:]
    return pad(draw, lines, masks)


def _prompt(
    draw: st.DrawFn,
    spec: MRopeSpec,
    rows: Sequence[Sequence[Segment]],
    lines: list[str],
    mask: list[str] | None,
    use_audio_in_video: bool,
    *,
    zeros: bool = False,
    amiss: bool = False,
) -> Prompt:
    images = all_of(rows, "images")
    videos: list[Any] = list(zip(all_of(rows, "videos"), all_of(rows, "seconds"), strict=True))
    audios = all_of(rows, "audios")
    if zeros:
        nothing = st.lists(st.integers(0, 3), max_size=1)
        for given, empty in ((images, (0, 0, 0)), (videos, ((0, 0, 0), 1.0)), (audios, 0)):
            for at in draw(nothing):
                given.insert(at, empty)
    if amiss and draw(st.booleans()):
        images = replaced(draw, images, st.just((1, 1, 1)))
        del videos[draw(st.integers(0, 3)) :]
        del audios[draw(st.integers(0, 3)) :]
    # Drawn first: a choice fewer would count as simpler.
    without_grids = not draw(st.booleans()) and not images and not videos
    without_audio = not draw(st.booleans()) and not audios
    return Prompt.from_symbols(
        spec,
        lines,
        mask=mask,
        image_grid_thw=None if without_grids else patches(spec, images),
        video_grid_thw=patches(spec, [grid for grid, _ in videos]) if videos else None,
        audio_seqlens=None if without_audio else audios,
        second_per_grids=[seconds for _, seconds in videos] if videos else None,
        use_audio_in_video=use_audio_in_video,
    )
