"""The reference: M-RoPE positions of GLM-4V-like prompts, one token after the other.

Plain Python over lists of integers, to be checked by eye. Nothing of the library is used here, so
that the two can only agree by both being right. The rules are those of SGLang's
`get_rope_index_glm4v` and of transformers' `Glm4vModel.get_rope_index`; the arguments
`marker_rule`, `span_rule`, `padding_value` and `delta_length` choose where these two differ.

Where both upstreams fail or answer by accident, the reference goes further or refuses: images with
nothing between them are told apart by their grids, and grids that no token asks for are an error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

__all__ = ["Refusal", "get_rope_index", "token_types"]

TEXT, IMAGE, VIDEO = 0, 1, 2


class Refusal(ValueError):  # noqa: N818 - it is an answer of the reference, not a fault of it
    """The prompt has no positions: its tokens, grids or mask contradict each other."""


class _Block(NamedTuple):
    """An image, or one frame of a video: a block of `t * h * w` tokens. `source` names its grid."""

    source: str
    t: int
    h: int
    w: int


def get_rope_index(
    input_ids: Sequence[Sequence[int]],
    *,
    image_token_id: int,
    video_start_token_id: int,
    video_end_token_id: int,
    spatial_merge_size: int,
    marker_rule: Literal["last", "count"],
    span_rule: Literal["thw", "hw"],
    padding_value: int,
    delta_length: Literal["padded", "valid"],
    image_grid_thw: Sequence[Sequence[int]] = (),
    video_grid_thw: Sequence[Sequence[int]] = (),
    attention_mask: Sequence[Sequence[int]] | None = None,
    mm_token_type_ids: Sequence[Sequence[int]] | None = None,
    allow_left_over: bool = False,
) -> tuple[list[list[list[int]]], list[list[int]]]:
    """Return the position of every token on every axis, and how far decoding is shifted.

    Args:
        input_ids: B rows of T token ids.
        image_token_id: the placeholder of images and of video frames.
        video_start_token_id: the marker before a video.
        video_end_token_id: the marker after it.
        spatial_merge_size: patches per token along each spatial side.
        marker_rule: a placeholder is a video's if the `"last"` marker before it is a start, or if
            the `"count"` of starts exceeds that of ends.
        span_rule: a block advances the position by the largest of its `"thw"` or `"hw"` sides.
        padding_value: the position of masked tokens.
        delta_length: what deltas are measured against, the `"padded"` or the `"valid"` length.
        image_grid_thw: one `(t, h, w)` in patches for each image, in the order of the tokens, row
            by row. A grid of zeros is no image and is skipped.
        video_grid_thw: the same for videos. A video is `t` frames of `h` by `w` patches.
        attention_mask: B rows of T values, 1 for a token and 0 for none. Absent: all are tokens.
        mm_token_type_ids: B rows of T types, 0 text, 1 image, 2 video, instead of reading the ids.
        allow_left_over: whether to ignore grids beyond the last one used, as both upstreams do.

    Returns:
        The positions, 3 axes (temporal, height, width) of B rows of T, and the deltas, B rows of 1.

    Raises:
        Refusal: if tokens and grids do not fit each other, or on a value outside those named above.

    Example:
        >>> position_ids, rope_deltas = get_rope_index(
        ...     [[5, 9, 9, 6]], image_token_id=9, video_start_token_id=7, video_end_token_id=8,
        ...     spatial_merge_size=2, marker_rule="last", span_rule="thw", padding_value=1,
        ...     delta_length="padded", image_grid_thw=[[1, 2, 4]],
        ... )
        >>> position_ids
        [[[0, 1, 1, 3]], [[0, 1, 1, 3]], [[0, 1, 2, 3]]]
        >>> rope_deltas
        [[0]]
    """
    images = _blocks("image_grid_thw", image_grid_thw, spatial_merge_size)
    videos = _blocks("video_grid_thw", video_grid_thw, spatial_merge_size)
    frames = (video._replace(t=1) for video in videos for _ in range(video.t))
    pending = {IMAGE: deque(images), VIDEO: deque(frames)}

    axes: list[list[list[int]]] = [[], [], []]
    rope_deltas = []
    for row, ids in enumerate(input_ids):
        mask = [1] * len(ids) if attention_mask is None else attention_mask[row]
        _check_row("attention_mask", row, mask, allowed=(0, 1))
        kept = [index for index, value in enumerate(mask) if value == 1]
        if mm_token_type_ids is None:
            types = token_types(
                [ids[index] for index in kept],
                image_token_id=image_token_id,
                video_start_token_id=video_start_token_id,
                video_end_token_id=video_end_token_id,
                marker_rule=marker_rule,
            )
        else:
            types = [mm_token_type_ids[row][index] for index in kept]
            _check_row("mm_token_type_ids", row, types, allowed=(TEXT, IMAGE, VIDEO))

        positions = _walk(types, pending, span_rule, row)
        for axis in range(3):
            line = [padding_value] * len(ids)
            for index, position in zip(kept, positions, strict=True):
                line[index] = position[axis]
            axes[axis].append(line)
        largest = max((max(position) for position in positions), default=-1)
        length = len(ids) if delta_length == "padded" else len(kept)
        rope_deltas.append([largest + 1 - length])

    for left in pending.values():
        if left and not allow_left_over:
            raise Refusal(f"{left[0].source} is left over: no token in any row belongs to it")
    return axes, rope_deltas


def token_types(
    ids: Iterable[int],
    *,
    image_token_id: int,
    video_start_token_id: int,
    video_end_token_id: int,
    marker_rule: Literal["last", "count"],
) -> list[int]:
    """Return the type (0 text, 1 image, 2 video) of each unmasked token of one row.

    Example:
        >>> rule = {"image_token_id": 9, "video_start_token_id": 7, "video_end_token_id": 8}
        >>> token_types([8, 7, 9, 8, 9], marker_rule="last", **rule)
        [0, 0, 2, 0, 1]
        >>> token_types([8, 7, 9, 8, 9], marker_rule="count", **rule)
        [0, 0, 1, 0, 1]
    """
    types = []
    starts = ends = 0
    last = None
    for token in ids:
        if token in (video_start_token_id, video_end_token_id):
            last = token
        starts += token == video_start_token_id
        ends += token == video_end_token_id
        in_video = last == video_start_token_id if marker_rule == "last" else starts > ends
        types.append(TEXT if token != image_token_id else VIDEO if in_video else IMAGE)
    return types


def _blocks(name: str, grid_thw: Sequence[Sequence[int]], merge: int) -> Iterable[_Block]:
    for index, (t, h, w) in enumerate(grid_thw):
        source = f"{name}[{index}] = ({t}, {h}, {w})"
        if t == h == w == 0:
            continue
        if min(t, h, w) < 1:
            raise Refusal(f"{source} must be positive throughout, or zero throughout")
        if h % merge or w % merge:
            raise Refusal(f"{source} must have h and w divisible by spatial_merge_size {merge}")
        yield _Block(source, t, h // merge, w // merge)


def _walk(
    types: Sequence[int], pending: dict[int, deque[_Block]], span_rule: str, row: int
) -> list[tuple[int, int, int]]:
    """Number the unmasked tokens of one row, taking blocks off `pending` as they are met."""
    positions: list[tuple[int, int, int]] = []
    start = 0
    for kind, run in groupby(types):
        length = len(list(run))
        if kind == TEXT:
            positions += [(start + i, start + i, start + i) for i in range(length)]
            start += length
            continue
        end = len(positions) + length
        while len(positions) < end:
            left = end - len(positions)
            if not pending[kind]:
                name = "image_grid_thw" if kind == IMAGE else "video_grid_thw"
                raise Refusal(f"row {row} has {left} tokens that no grid of {name} is left for")
            source, t, h, w = pending[kind].popleft()
            if t * h * w > left:
                raise Refusal(f"row {row} ends a run inside {source}: {left} of {t * h * w} tokens")
            positions += [
                (start + f, start + y, start + x)
                for f in range(t)
                for y in range(h)
                for x in range(w)
            ]
            start += max(h, w) if span_rule == "hw" else max(t, h, w)
    return positions


def _check_row(name: str, row: int, values: Sequence[int], allowed: tuple[int, ...]) -> None:
    for value in values:
        if value not in allowed:
            choices = ", ".join(map(str, allowed))
            raise Refusal(f"{name} must hold {choices} only, got {value} in row {row}")
