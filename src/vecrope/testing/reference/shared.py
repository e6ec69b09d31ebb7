"""The rule that most families share.

The rules are those of the functions that compute positions in transformers, SGLang and vLLM; the
arguments named after the fields of `vecrope.MRopeSpec` choose where families and upstreams differ.

Where the upstreams fail or answer by accident, the reference goes further or refuses: images with
nothing between them are told apart by their grids, and grids that no token asks for are an error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import groupby
from math import isfinite
from typing import Literal, NamedTuple

from vecrope.testing.reference.rows import (
    IMAGE,
    TEXT,
    VIDEO,
    Answer,
    Position,
    Refusal,
    float32,
    grids_of,
    next_position,
    number_rows,
)

__all__ = ["get_rope_index", "token_types"]


class _Block(NamedTuple):
    """An image, a video, or one frame of a video: what gets one grid of positions.

    `times` holds the temporal offset of each of its frames, `source` names its grid.
    """

    source: str
    times: Sequence[int]
    h: int
    w: int


def get_rope_index(
    input_ids: Sequence[Sequence[int]],
    *,
    image_token_id: int | None,
    video_token_id: int | None = None,
    video_start_token_id: int | None = None,
    video_end_token_id: int | None = None,
    vision_start_token_id: int | None = None,
    spatial_merge_size: int,
    temporal_merge_size: int = 1,
    marker_rule: Literal["none", "last", "count", "adjacent"],
    separate_frames: bool,
    frames_may_touch: bool = True,
    image_time: Literal["frames", "none"] = "frames",
    video_time: Literal["frames", "seconds"] = "frames",
    tokens_per_second: float | None = None,
    time_order: Literal["rate", "seconds"] = "rate",
    time_dtype: Literal["given", "float32", "float64", "int64"] = "given",
    default_seconds: float | None = None,
    multi_frame_images: bool = True,
    span_rule: Literal["thw", "hw"],
    mask_rule: Literal["skip", "ignore"] = "skip",
    padding_value: int,
    delta_length: Literal["padded", "valid"],
    image_grid_thw: Sequence[Sequence[int]] = (),
    video_grid_thw: Sequence[Sequence[int]] = (),
    second_per_grid_ts: Sequence[float] | None = None,
    seconds_type: Literal["list", "float32", "float64"] = "list",
    attention_mask: Sequence[Sequence[int]] | None = None,
    mm_token_type_ids: Sequence[Sequence[int]] | None = None,
    allow_left_over: bool = False,
) -> Answer:
    """Return the position of every token on every axis, and how far decoding is shifted.

    Args:
        input_ids: B rows of T token ids.
        image_token_id: the placeholder of images; None: there are none.
        video_token_id: the placeholder of videos; None: markers tell which of `image_token_id` are.
        video_start_token_id: the marker before a video.
        video_end_token_id: the marker after it.
        vision_start_token_id: the marker right before an image, a video or a separate frame.
        spatial_merge_size: patches per token along each spatial side.
        temporal_merge_size: frames of a video's grid that share their tokens.
        marker_rule: whether `token_types` needs markers, or, `"adjacent"`, whether a
            `vision_start_token_id` has to stand right before each block of placeholders.
        separate_frames: whether each frame of a video is a block, or the video is.
        frames_may_touch: whether such frames may stand with nothing in between.
        image_time: whether the frames of an image lie at temporal offsets 0, 1, ... or all at 0.
        video_time: whether those of a video that is a block lie at 0, 1, ... or at its seconds.
        tokens_per_second: positions a second.
        time_order: whether the `"rate"` is first multiplied by the seconds of a step, or the
            `"seconds"` of a step by the number of the step.
        time_dtype: the precision of both products; `"given"`: see `seconds_type`; `"int64"`: the
            seconds are cut to whole numbers.
        default_seconds: seconds of a step where `second_per_grid_ts` is None.
        multi_frame_images: whether an image may have several frames.
        span_rule: a block advances the position past the largest of its `"thw"` or its `"hw"`
            offsets.
        mask_rule: whether masked tokens are left out, or the mask is ignored.
        padding_value: the position of masked tokens.
        delta_length: what deltas are measured against, the `"padded"` or the `"valid"` length.
        image_grid_thw: one `(t, h, w)` in patches for each image, in the order of the tokens, row
            by row. A grid of zeros is no image and is skipped.
        video_grid_thw: the same for videos. A video is `t` frames of `h` by `w` patches.
        second_per_grid_ts: seconds of a step, one for each row of `video_grid_thw`.
        seconds_type: whether these stand for a `"list"` of Python floats or for a tensor. A list is
            computed with in float32, though `tokens_per_second` times a float is a Python product.
        attention_mask: B rows of T values, 1 for a token and 0 for none. Absent: all are tokens.
        mm_token_type_ids: B rows of T types, 0 text, 1 image, 2 video, instead of reading the ids.
        allow_left_over: whether to ignore grids beyond the last one used, as the upstreams do.

    Returns:
        The positions, 3 axes (temporal, height, width) of B rows of T, and the deltas, B rows of 1.

    Raises:
        Refusal: if tokens and grids do not fit each other, or on a value outside those named above.

    Example:
        >>> position_ids, rope_deltas = get_rope_index(
        ...     [[5, 9, 9, 6]], image_token_id=9, spatial_merge_size=2, marker_rule="none",
        ...     separate_frames=False, span_rule="thw", padding_value=1, delta_length="padded",
        ...     image_grid_thw=[[1, 2, 4]],
        ... )
        >>> position_ids
        [[[0, 1, 1, 3]], [[0, 1, 1, 3]], [[0, 1, 2, 3]]]
        >>> rope_deltas
        [[0]]
    """
    images = []
    for _, source, t, h, w in grids_of("image_grid_thw", image_grid_thw, spatial_merge_size):
        if t > 1 and not multi_frame_images:
            raise Refusal(f"{source} must have t 1: an image has one frame")
        images.append(_Block(source, range(t) if image_time == "frames" else [0] * t, h, w))

    if second_per_grid_ts is None and default_seconds is not None:
        seconds, seconds_type = [default_seconds] * len(video_grid_thw), "list"
    else:
        seconds = list(second_per_grid_ts or ())
        _check_seconds(second_per_grid_ts, video_time, len(video_grid_thw))
    precision = seconds_type if time_dtype == "given" else time_dtype
    if time_dtype == "int64":
        seconds, precision = [int(value) for value in seconds], "float64"
    videos = []
    for index, source, t, h, w in grids_of("video_grid_thw", video_grid_thw, spatial_merge_size):
        frames = t // temporal_merge_size
        if frames == 0:
            raise Refusal(f"{source} must have t of at least temporal_merge_size")
        if separate_frames:
            videos += [_Block(source, [0], h, w)] * frames
        elif tokens_per_second is None:
            videos.append(_Block(source, range(frames), h, w))
        else:
            times = _times(frames, seconds[index], tokens_per_second, time_order, precision)
            videos.append(_Block(source, times, h, w))
    pending = {IMAGE: deque(images), VIDEO: deque(videos)}

    for row, mask in enumerate(attention_mask or ()):
        _check_row("attention_mask", row, mask, allowed=(0, 1))

    def number_row(row: int, kept: list[int], ids: list[int]) -> tuple[list[Position], int]:
        marked = None
        if mm_token_type_ids is None:
            types = token_types(
                ids,
                image_token_id=image_token_id,
                video_token_id=video_token_id,
                video_start_token_id=video_start_token_id,
                video_end_token_id=video_end_token_id,
                marker_rule=marker_rule,
            )
            if marker_rule == "adjacent":
                marked = [token == vision_start_token_id for token in [None, *ids]]
        else:
            types = [mm_token_type_ids[row][index] for index in kept]
            _check_row("mm_token_type_ids", row, types, allowed=(TEXT, IMAGE, VIDEO))
        positions = _walk(types, marked, pending, frames_may_touch, span_rule, row)
        return positions, next_position(positions)

    answer = number_rows(
        input_ids,
        attention_mask if mask_rule == "skip" else None,
        number_row,
        padding_value=padding_value,
        delta_length=delta_length,
    )
    for left in pending.values():
        if left and not allow_left_over:
            raise Refusal(f"{left[0].source} is left over: no token in any row belongs to it")
    return answer


def token_types(
    ids: Iterable[int],
    *,
    image_token_id: int | None,
    video_token_id: int | None = None,
    video_start_token_id: int | None = None,
    video_end_token_id: int | None = None,
    marker_rule: Literal["none", "last", "count", "adjacent"],
) -> list[int]:
    """Return the type (0 text, 1 image, 2 video) of each unmasked token of one row.

    Placeholders of videos have an id of their own, or they are those of images for which the
    `"last"` marker before them is a start, or the `"count"` of starts exceeds that of ends.

    Example:
        >>> rule = {"image_token_id": 9, "video_start_token_id": 7, "video_end_token_id": 8}
        >>> token_types([8, 7, 9, 8, 9], marker_rule="last", **rule)
        [0, 0, 2, 0, 1]
        >>> token_types([8, 7, 9, 8, 9], marker_rule="count", **rule)
        [0, 0, 1, 0, 1]
        >>> token_types([5, 9, 6], image_token_id=9, video_token_id=6, marker_rule="none")
        [0, 1, 2]
    """
    types = []
    starts = ends = 0
    last = None
    for token in ids:
        if token in (video_start_token_id, video_end_token_id):
            last = token
        starts += token == video_start_token_id
        ends += token == video_end_token_id
        if token == image_token_id:
            by_last = marker_rule == "last" and last == video_start_token_id
            by_count = marker_rule == "count" and starts > ends
            types.append(VIDEO if by_last or by_count else IMAGE)
        else:
            types.append(VIDEO if token == video_token_id else TEXT)
    return types


def _times(frames: int, seconds: float, rate: float, order: str, precision: str) -> list[int]:
    """Return the temporal offset of each frame of a video: rate times seconds times its number."""
    rounded = float if precision == "float64" else float32
    if order == "seconds":
        offsets = [rounded(f * rounded(seconds)) * rounded(rate) for f in range(frames)]
    else:
        step = rate * seconds if precision == "list" else rounded(rate) * rounded(seconds)
        offsets = [f * rounded(step) for f in range(frames)]
    return [int(rounded(offset)) for offset in offsets]


def _walk(
    types: Sequence[int],
    marked: Sequence[bool] | None,
    pending: dict[int, deque[_Block]],
    frames_may_touch: bool,
    span_rule: str,
    row: int,
) -> list[Position]:
    """Number the unmasked tokens of one row, taking blocks off `pending` as they are met.

    Where `marked` is given, it says of each token whether a vision start stands right before it.
    """
    positions: list[Position] = []
    start = 0
    for kind, run in groupby(types):
        length = len(list(run))
        if kind == TEXT:
            positions += [(start + i, start + i, start + i) for i in range(length)]
            start += length
            continue
        end = len(positions) + length
        before: str | None = None
        while len(positions) < end:
            left = end - len(positions)
            if not pending[kind]:
                name = "image_grid_thw" if kind == IMAGE else "video_grid_thw"
                raise Refusal(f"row {row} has {left} tokens that no grid of {name} is left for")
            source, times, h, w = pending[kind].popleft()
            tokens = len(times) * h * w
            if tokens > left:
                raise Refusal(f"row {row} ends a run inside {source}: {left} of {tokens} tokens")
            if source == before and not frames_may_touch:
                raise Refusal(f"row {row} has frames of {source} with nothing in between")
            before = source
            if marked is not None and not marked[len(positions)]:
                raise Refusal(f"row {row} has no vision_start_token_id right before {source}")
            positions += [
                (start + time, start + y, start + x)
                for time in times
                for y in range(h)
                for x in range(w)
            ]
            start += max(h, w) if span_rule == "hw" else max(times[-1] + 1, h, w)
    return positions


def _check_seconds(seconds: Sequence[float] | None, video_time: str, num_videos: int) -> None:
    if seconds is None:
        if video_time == "seconds" and num_videos:
            raise Refusal("second_per_grid_ts must be given: there is no default_seconds")
        return
    if video_time == "frames":
        raise Refusal("second_per_grid_ts must not be given: no video has seconds")
    if len(seconds) != num_videos:
        raise Refusal(
            f"second_per_grid_ts must hold {num_videos} values, one for each row of "
            f"video_grid_thw, got {len(seconds)}"
        )
    for value in seconds:
        if not (isfinite(value) and value >= 0):
            raise Refusal(f"second_per_grid_ts must be finite and not negative, got {value}")


def _check_row(name: str, row: int, values: Sequence[int], allowed: tuple[int, ...]) -> None:
    for value in values:
        if value not in allowed:
            choices = ", ".join(map(str, allowed))
            raise Refusal(f"{name} must hold {choices} only, got {value} in row {row}")
