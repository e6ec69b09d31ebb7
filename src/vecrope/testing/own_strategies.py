"""Prompts for hypothesis, of families with a rule of their own, laid out as their processors do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from hypothesis import strategies as st

from vecrope.families.rules import Bailing, GlmImage, Hunyuan
from vecrope.spec import MRopeSpec
from vecrope.testing.own_prompt import OwnPrompt, Rows

__all__ = ["own_misfits", "own_prompts"]

Grid = tuple[int, int, int]


class _Segment(NamedTuple):
    ids: list[int]
    images: list[Grid]
    videos: list[Grid]


@st.composite
def own_prompts(
    draw: st.DrawFn,
    spec: MRopeSpec,
    *,
    max_rows: int = 3,
    max_segments: int = 4,
    max_side: int = 4,
    max_text: int = 4,
    holes: bool = True,
) -> OwnPrompt:
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
        max_text: the most tokens of a text.
        holes: whether the mask may have holes.
    """
    row = st.lists(_segment(spec, max_side, max_text), min_size=1, max_size=max_segments)
    rows = draw(st.lists(row, min_size=1, max_size=max_rows))
    flag = st.booleans()
    lines = [[token for segment in row for token in segment.ids] for row in rows]
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
    videos = [grid for row in rows for segment in row for grid in segment.videos]
    # Some processors pad a row, others know single rows only: then all are filled with text.
    masked = spec.mask_rule == "skip"
    text = _text_id(spec)
    seq_len = max(map(len, lines)) + draw(st.integers(0, 2))
    ids, mask = [], []
    for line in lines:
        left = draw(st.integers(0, seq_len - len(line)))
        right = seq_len - len(line) - left
        ids.append([text] * left + line + [text] * right)
        kept = [1] * len(line)
        if holes and masked and draw(flag):
            kept = [int(token != text or draw(flag)) for token in line]
        mask.append([0] * left + kept + [0] * right)
    explicit_mask = draw(flag) or any(0 in line for line in mask)
    return OwnPrompt(
        spec,
        ids,
        image_grid_thw=_patches(spec, images) if bool(images) or draw(flag) else None,
        video_grid_thw=_patches(spec, videos) if videos else None,
        attention_mask=mask if masked and explicit_mask else None,
        images_per_sample=per_row,
    )


@st.composite
def own_misfits(draw: st.DrawFn, spec: MRopeSpec) -> OwnPrompt:
    """Draw a prompt whose tokens, mask and grids need not fit: the reference refuses most of them.

    Rows are any sequence of the family's special tokens and text, cut or repeated, and grids are
    dropped, replaced and added, grids of zeros and ill-formed ones among them.
    """
    prompt = draw(own_prompts(spec, max_rows=2, max_side=2))
    tokens = [_text_id(spec), *_special_ids(spec)]
    rows = []
    for row in prompt.input_ids:
        ids = list(row)
        for _ in range(draw(st.integers(0, 2))):
            at = draw(st.integers(0, len(ids) - 1))
            ids[at] = draw(st.sampled_from(tokens))
        rows.append(ids)
    images = _changed(draw, spec, prompt.image_grid_thw)
    videos = prompt.video_grid_thw
    if isinstance(spec.own_rule, Bailing):
        videos = _changed(draw, spec, videos)
    per_row = prompt.images_per_sample
    if per_row is not None:
        # As many as there are, some of them perhaps another row's.
        total = len(images or ())
        first = min(per_row[0], total) if len(rows) > 1 else total
        per_row = [first, total - first][: len(rows)]
    return OwnPrompt(spec, rows, images, videos, prompt.attention_mask, per_row)


def _changed(draw: st.DrawFn, spec: MRopeSpec, grids: Rows | None) -> Rows | None:
    changed = list(grids or ())
    start = draw(st.integers(0, len(changed)))
    stop = start + draw(st.integers(0, 1))
    changed[start:stop] = draw(st.lists(_any_grid(spec), max_size=2))
    return changed or None


def _segment(spec: MRopeSpec, max_side: int, max_text: int) -> st.SearchStrategy[_Segment]:
    text = st.integers(1, max_text).map(lambda n: _Segment([_text_id(spec)] * n, [], []))
    side = st.integers(1, max_side)
    # glm_image numbers the frames of an image, hunyuan_vl ignores them, vLLM has single ones.
    frames = st.integers(1, 3) if spec.multi_frame_images else st.just(1)
    segment = text | st.tuples(frames, side, side).flatmap(lambda grid: _image(spec, grid))
    if isinstance(spec.own_rule, Bailing):
        segment |= st.tuples(st.integers(1, 3), side, side).map(lambda grid: _video(spec, grid))
    return segment


@st.composite
def _image(draw: st.DrawFn, spec: MRopeSpec, grid: Grid) -> _Segment:
    t, h, w = grid
    assert spec.image_token_id is not None
    image, rule = [spec.image_token_id], spec.own_rule
    if isinstance(rule, Hunyuan):
        around = draw(st.sampled_from((0, 2)))
        _, start, end = _markers(spec)
        return _Segment([start, *image * (h * (w + 1) + around), end], [grid], [])
    tokens = image * (t * h * w)
    if isinstance(rule, GlmImage):
        return _Segment([rule.image_start_token_id, *tokens, rule.image_end_token_id], [grid], [])
    if isinstance(rule, Bailing):
        assert spec.vision_start_token_id is not None
        return _Segment([spec.vision_start_token_id, *tokens, _text_id(spec)], [grid], [])
    return _Segment(tokens, [grid], [])


def _video(spec: MRopeSpec, grid: Grid) -> _Segment:
    t, h, w = grid
    assert spec.video_token_id is not None
    assert spec.vision_start_token_id is not None
    assert spec.video_start_token_id is not None
    text, frame = _text_id(spec), [spec.video_token_id] * (h * w)
    if spec.separate_frames:
        # A timestamp before each frame.
        return _Segment([text, spec.vision_start_token_id, *frame, text] * t, [], [grid])
    return _Segment([spec.video_start_token_id, *frame * t, text], [], [grid])


def _special_ids(spec: MRopeSpec) -> list[int]:
    ids = [spec.image_token_id, spec.video_token_id]
    ids += [spec.vision_start_token_id, spec.video_start_token_id]
    if isinstance(spec.own_rule, GlmImage):
        ids += [spec.own_rule.image_start_token_id, spec.own_rule.image_end_token_id]
    return [token for token in ids if token is not None]


def _markers(spec: MRopeSpec) -> list[int]:
    """Return the text token and two ids that are text to the rule: an image's start and end."""
    free = (token for token in count() if token not in _special_ids(spec))
    return [next(free) for _ in range(3)]


def _text_id(spec: MRopeSpec) -> int:
    return _markers(spec)[0]


def _any_grid(spec: MRopeSpec) -> st.SearchStrategy[Grid]:
    small = st.integers(1, 2)
    sound = st.tuples(st.just(1), small, small).map(lambda grid: _patches(spec, [grid])[0])
    side = st.integers(-1, 2 * spec.spatial_merge_size)
    return sound | st.just((0, 0, 0)) | st.tuples(st.integers(-1, 2), side, side)


def _patches(spec: MRopeSpec, grids: Sequence[Grid]) -> list[Grid]:
    merge = spec.spatial_merge_size
    return [(t, h * merge, w * merge) for t, h, w in grids]
