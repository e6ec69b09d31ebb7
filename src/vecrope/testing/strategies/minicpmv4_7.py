"""Prompts of MiniCPM-V 4.7: pictures as a processor lays them out, and hostile soup of crops."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from hypothesis import strategies as st

from vecrope.spec import MRopeSpec
from vecrope.testing.prompt import Prompt
from vecrope.testing.reference import IMAGE, VIDEO, Refusal
from vecrope.testing.reference.minicpmv4_7 import pictures_of
from vecrope.testing.rules import minicpm_rules
from vecrope.testing.strategies.layout import pad, replaced

Size = tuple[int, int]
_PLACEHOLDERS = {IMAGE: "I", VIDEO: "V"}


@st.composite
def conversations(
    draw: st.DrawFn,
    spec: MRopeSpec,
    *,
    max_rows: int = 3,
    max_segments: int = 3,
    max_side: int = 4,
    masks: bool = True,
) -> Prompt:
    """Draw a prompt as the processor lays it out; the reference accepts every one of them.

    A row is a list of texts, images and videos. An image is a thumbnail, `(II)`, or one and slices
    in lines, `(I)<II><II>n<II><II>`; a video is one picture after the other, with nothing or with
    newlines in between, and so may an image follow another. Shrinks towards one text token.

    Args:
        draw: given by hypothesis.
        spec: the rules under which the prompt is read.
        max_rows: the largest B.
        max_segments: the most texts, images and videos in a row.
        max_side: the largest height and width of a crop, in tokens.
        masks: whether there may be padding.
    """
    sizes: dict[int, list[Size]] = {IMAGE: [], VIDEO: []}
    parts = st.lists(st.sampled_from(["text", "image", "video"]), min_size=1, max_size=max_segments)
    lines = []
    for kinds in draw(st.lists(parts, min_size=1, max_size=max_rows)):
        line = ""
        for kind in kinds:
            if kind == "text":
                line += draw(st.text("tttn", min_size=1, max_size=4))
                continue
            code = IMAGE if kind == "image" else VIDEO
            for _ in range(draw(st.integers(1, 3)) if kind == "video" else 1):
                symbols, own = draw(_picture(code, max_side))
                line += symbols + draw(st.sampled_from(["", "", "n", "nn"]))
                sizes[code] += own
        lines.append(line)
    if masks:
        rows, mask = pad(draw, lines)
    else:
        rows, mask = [line.ljust(max(map(len, lines)), "t") for line in lines], None
    return _prompt(draw, spec, rows, mask, sizes)


@st.composite
def token_soup(
    draw: st.DrawFn,
    spec: MRopeSpec,
    *,
    max_rows: int = 3,
    max_pieces: int = 8,
    fit: bool = True,
    zero_grids: bool = False,
) -> Prompt:
    """Draw a hostile prompt: stray markers, unmarked and touching crops, a mask with any holes.

    Sizes fit the crops that the mask leaves, if there are any to be found, so that the reference
    accepts most prompts. Slices may be of another kind than their thumbnail, lines of any length.
    Shrinks towards one row of one text token.

    Args:
        draw: given by hypothesis.
        spec: the rules under which the prompt is read.
        max_rows: the largest B.
        max_pieces: the most pieces in a row: single markers or texts, and runs of placeholders with
            one of them, mostly fitting ones, on either side.
        fit: otherwise sizes are then dropped, replaced and added, ill-formed ones among them.
        zero_grids: whether sizes of zeros, which are no crops, may stand among the others.
    """
    pieces = st.lists(_piece(), min_size=1, max_size=max_pieces).map("".join)
    lines = ["t" + line for line in draw(st.lists(pieces, min_size=1, max_size=max_rows))]
    seq_len = max(map(len, lines))
    rows = [line.ljust(seq_len, "t") for line in lines]
    holes = st.text("1110", min_size=seq_len, max_size=seq_len)
    mask = draw(st.none() | st.lists(holes, min_size=len(rows), max_size=len(rows)))
    sizes: dict[int, list[Size]] = {IMAGE: [], VIDEO: []}
    for kind, tokens in _crops_of(spec, rows, mask):
        heights = [n for n in range(1, tokens + 1) if tokens % n == 0]
        height = draw(st.sampled_from(heights))
        sizes[kind].append((height, tokens // height))
    return _prompt(draw, spec, rows, mask, sizes, fit=fit, zero_grids=zero_grids)


@st.composite
def _picture(draw: st.DrawFn, kind: int, max_side: int) -> tuple[str, list[Size]]:
    side = st.integers(1, max_side)
    size = st.tuples(side, side)
    sizes = [draw(size)]
    symbols = f"({_PLACEHOLDERS[kind] * (sizes[0][0] * sizes[0][1])})"
    lines, columns = draw(st.sampled_from([(0, 0), (0, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 2)]))
    same, alike = draw(size), draw(st.booleans())
    for line in range(lines):
        symbols += "n" if line else ""
        for _ in range(columns):
            own = same if alike else draw(size)
            symbols += f"<{_PLACEHOLDERS[kind] * (own[0] * own[1])}>"
            sizes.append(own)
    return symbols, sizes


@cache
def _piece() -> st.SearchStrategy[str]:
    run = st.tuples(st.sampled_from("IV"), st.integers(1, 6)).map(lambda drawn: drawn[0] * drawn[1])
    thumbnail = run.map(lambda symbols: f"({symbols})")
    one_slice = run.map(lambda symbols: f"<{symbols}>")
    stray = st.tuples(st.sampled_from("(<t"), run, st.sampled_from(")>tn")).map("".join)
    return (
        st.sampled_from("ttnn")
        | one_slice
        | thumbnail
        | one_slice
        | stray
        | st.sampled_from(")>(<")
        | run
    )


def _crops_of(
    spec: MRopeSpec, rows: Sequence[str], mask: Sequence[str] | None
) -> list[tuple[int, int]]:
    """Return the kind of each crop's picture and the crop's length, of rows that are sound."""
    names = ("image_token_id", "video_token_id", "markers")
    rules = {name: minicpm_rules(spec)[name] for name in names}
    by_markers = minicpm_rules(spec)["crop_rule"] == "markers"
    skips = mask is not None and spec.mask_rule == "skip"
    found = []
    for row, ids in enumerate(Prompt.from_symbols(spec, rows).input_ids.tolist()):
        kept = [
            token
            for index, token in enumerate(ids)
            if not skips or mask is None or mask[row][index] == "1"
        ]
        try:
            pictures = pictures_of(kept, by_markers=by_markers, **rules)
        except Refusal:
            continue
        for picture in pictures:
            found += [(picture[0].kind, crop.end - crop.start) for crop in picture]
    return found


def _prompt(
    draw: st.DrawFn,
    spec: MRopeSpec,
    rows: Sequence[str],
    mask: Sequence[str] | None,
    sizes: dict[int, list[Size]],
    *,
    fit: bool = True,
    zero_grids: bool = False,
) -> Prompt:
    factor = minicpm_rules(spec)["downsample_factor"]
    given: list[list[Size] | None] = []
    for own in sizes.values():
        patches = [(h * factor, w * factor) for h, w in own]
        if zero_grids:
            for index in draw(st.lists(st.integers(0, len(patches)), max_size=2)):
                patches.insert(index, (0, 0))
        if not fit:
            side = st.integers(-1, 3).map(lambda n: n * factor) | st.integers(0, 9)
            patches = replaced(draw, patches, st.tuples(side, side))
        absent = not patches and not draw(st.booleans())
        given.append(None if absent else patches)
    return Prompt.from_symbols(
        spec, rows, mask=mask, target_sizes=given[0], target_sizes_videos=given[1]
    )
