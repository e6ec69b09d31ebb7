"""Prompts of hunyuan_vl, glm_image, isaac and bailing, laid out as their processors do."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from hypothesis import strategies as st

from vecrope.families.rules import Bailing, GlmImage, Hunyuan
from vecrope.spec import MRopeSpec
from vecrope.testing.prompt import Prompt
from vecrope.testing.rules import symbols_of
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
    max_side: int = 4,
    holes: bool = True,
) -> Prompt:
    """Draw a prompt that the reference accepts. Shrinks towards one row of one text token.

    A row is a list of text, images and, for bailing, videos. Images of hunyuan_vl end each line in
    a token of their own and may have one more at both ends; those of isaac may touch; glm_image has
    grids of images to generate besides. Where the family knows a mask, rows are padded on any side,
    and text may have masked holes.

    Args:
        draw: given by hypothesis.
        spec: the rules under which the prompt is read.
        max_rows: the largest B.
        max_segments: the most texts, images and videos in a row.
        max_side: the largest height and width of an image or a frame, in tokens.
        holes: whether the mask may have holes.
    """
    row = st.lists(_segment(spec, max_side), min_size=1, max_size=max_segments)
    rows = draw(st.lists(row, min_size=1, max_size=max_rows))
    flag = st.booleans()
    grids = [[grid for segment in row for grid in segment.images] for row in rows]
    per_row: list[int] | None = None
    if isinstance(spec.own_rule, GlmImage):
        side = st.integers(1, max_side)
        target: st.SearchStrategy[Grid] = st.tuples(st.just(1), side, side)
        targets = st.lists(target, max_size=3)
        if len(rows) == 1 and draw(flag):
            grids = [grids[0] + draw(targets)]
        else:
            grids = [own + draw(targets) for own in grids]
            per_row = [len(own) for own in grids]
    images = [grid for own in grids for grid in own]
    videos = all_of(rows, "videos")
    # Some processors pad a row, others know single rows only: then all are filled with text.
    masked = spec.mask_rule == "skip"
    lines = lines_of(rows)
    masks = ["1" * len(line) for line in lines]
    if holes and masked:
        for index, line in enumerate(lines):
            if draw(flag):
                kept = [symbol != "t" or draw(flag) for symbol in line]
                masks[index] = "".join("01"[value] for value in kept)
    padded, mask = pad(draw, lines, masks)
    return Prompt.from_symbols(
        spec,
        padded,
        mask=mask if masked else None,
        image_grid_thw=patches(spec, images) if bool(images) or draw(flag) else None,
        video_grid_thw=patches(spec, videos) if videos else None,
        images_per_sample=per_row,
    )


@st.composite
def token_soup(draw: st.DrawFn, spec: MRopeSpec) -> Prompt:
    """Draw a prompt whose tokens, mask and grids need not fit: the reference refuses most of them.

    Rows are any sequence of the family's special tokens and text, cut or repeated, and grids are
    dropped, replaced and added, grids of zeros and ill-formed ones among them.
    """
    prompt = draw(conversations(spec, max_rows=2, max_side=2))
    token_ids = symbols_of(spec)
    used = "tIV<[" if isinstance(spec.own_rule, Bailing) else "tI<>"
    tokens = [token_ids[symbol] for symbol in used]
    ids = prompt.input_ids.clone()
    batch, seq_len = ids.shape
    for row in range(batch):
        for _ in range(draw(st.integers(0, 2))):
            ids[row, draw(st.integers(0, seq_len - 1))] = draw(st.sampled_from(tokens))
    images = _changed(draw, spec, prompt.image_grid_thw)
    videos = prompt.video_grid_thw
    if isinstance(spec.own_rule, Bailing):
        videos = _changed(draw, spec, videos)
    per_row = prompt.images_per_sample
    if per_row is not None:
        # As many as there are, some of them perhaps another row's.
        total = 0 if images is None else len(images)
        first = min(int(per_row[0]), total) if batch > 1 else total
        per_row = torch.tensor([first, total - first][:batch])
    return replace(
        prompt,
        input_ids=ids,
        image_grid_thw=images,
        video_grid_thw=videos,
        images_per_sample=per_row,
    )


def _changed(draw: st.DrawFn, spec: MRopeSpec, grids: torch.Tensor | None) -> torch.Tensor | None:
    changed = replaced(draw, [] if grids is None else grids.tolist(), any_grid(spec))
    return torch.tensor(changed) if changed else None


@cache
def _segment(spec: MRopeSpec, max_side: int) -> st.SearchStrategy[Segment]:
    side = st.integers(1, max_side)
    # glm_image numbers the frames of an image, hunyuan_vl ignores them, vLLM has single ones.
    frames = st.integers(1, 3) if spec.multi_frame_images else st.just(1)
    image = st.tuples(frames, side, side).flatmap(lambda grid: _image(spec, grid))
    segment = text(4) | image
    if isinstance(spec.own_rule, Bailing):
        segment |= st.tuples(st.integers(1, 3), side, side).map(lambda grid: _video(spec, grid))
    return segment


@st.composite
def _image(draw: st.DrawFn, spec: MRopeSpec, grid: Grid) -> Segment:
    t, h, w = grid
    rule = spec.own_rule
    if isinstance(rule, Hunyuan):
        around = draw(st.sampled_from((0, 2)))
        return Segment(f"<{'I' * (h * (w + 1) + around)}>", images=(grid,))
    symbols = "I" * (t * h * w)
    if isinstance(rule, GlmImage):
        symbols = f"<{symbols}>"
    elif isinstance(rule, Bailing):
        symbols = f"<{symbols}t"
    return Segment(symbols, images=(grid,))


def _video(spec: MRopeSpec, grid: Grid) -> Segment:
    t, h, w = grid
    frame = "V" * (h * w)
    # A timestamp before each frame.
    symbols = f"t<{frame}t" * t if spec.separate_frames else f"[{frame * t}t"
    return Segment(symbols, videos=(grid,))
