"""The reference of families with a rule of their own: one token after the other, in plain lists.

As in `vecrope.testing.reference` nothing of the library is used here. Each function numbers a batch
of token rows under the rule of one family, and says where it is from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from vecrope.testing.reference import IMAGE, Refusal

__all__ = ["Answer", "bailing", "glm_image", "hunyuan", "isaac"]

Grid = Sequence[int]
Rows = Sequence[Sequence[int]]
Position = tuple[int, ...]


class Answer(NamedTuple):
    """What a rule answers: A axes of B rows of T positions, B rows of 1, and what is generated."""

    position_ids: list[list[list[int]]]
    rope_deltas: list[list[int]]
    decode: list[list[Position]] = []  # noqa: RUF012 - B rows of the positions of glm_image only


def hunyuan(
    input_ids: Rows,
    *,
    num_axes: int,
    image_token_id: int,
    spatial_merge_size: int,
    image_grid_thw: Sequence[Grid] | None = None,
    attention_mask: Rows | None = None,
    mm_token_type_ids: Rows | None = None,
) -> Answer:
    """Number a batch as transformers' `HunYuanVLModel.get_rope_index` does.

    Raises:
        Refusal: if runs of image tokens and grids do not fit each other.
    """
    grids = _real(image_grid_thw or ())
    ordinals = iter(range(len(grids)))

    def number(row: int, kept: Sequence[int]) -> tuple[list[Position], int]:
        types = [
            input_ids[row][i] == image_token_id
            if mm_token_type_ids is None
            else mm_token_type_ids[row][i] == IMAGE
            for i in kept
        ]
        positions: list[Position] = []
        for is_image, run in groupby(types):
            length, start = len(list(run)), len(positions)
            plain: list[Position] = [(start + i,) * num_axes for i in range(length)]
            if is_image and image_grid_thw is not None:
                ordinal = next(ordinals, None)
                if ordinal is None:
                    raise Refusal(f"row {row} has a run of image tokens that no grid is left for")
                _, h, w = _merged(grids[ordinal], spatial_merge_size)
                cells = [(x, y, ordinal) for y in range(h) for x in range(w + 1)]
                around = (length - len(cells)) // 2
                if length - len(cells) not in (0, 2):
                    raise Refusal(f"row {row} has {length} tokens for {grids[ordinal]}")
                for i, cell in enumerate(cells):
                    index = start + around + i
                    plain[around + i] = (*((index,) * (num_axes - 3)), *cell)
            positions += plain
        largest = max((max(position) for position in positions), default=-1)
        return positions, largest + 1 - len(kept)

    answer = _number_rows(input_ids, attention_mask, number, num_axes, padding_value=0)
    if next(ordinals, None) is not None:
        raise Refusal("a grid is left over: no run of image tokens takes it")
    return answer


def glm_image(
    input_ids: Rows,
    *,
    image_token_id: int,
    image_start_token_id: int,
    image_end_token_id: int,
    always_ends: bool,
    padding_value: int,
    image_grid_thw: Sequence[Grid] | None = None,
    images_per_sample: Sequence[int] | None = None,
    attention_mask: Rows | None = None,
) -> Answer:
    """Number a batch as transformers' `GlmImageModel.get_rope_index` and SGLang's processor do.

    With `always_ends` a row that has grids, and no image left to generate, still has its end.

    Raises:
        Refusal: if markers, image tokens and grids do not fit each other.
    """
    decode: list[list[Position]] = []

    def number(row: int, kept: Sequence[int]) -> tuple[list[Position], int]:
        grids = _real(_grids_of_row(row, image_grid_thw or (), images_per_sample))
        ids = [input_ids[row][i] for i in kept]
        starts = [i + 1 for i, token in enumerate(ids) if token == image_start_token_id]
        ends = [i for i, token in enumerate(ids) if token == image_end_token_id]
        positions: list[Position] = []
        now = 0

        def text_until(end: int) -> None:
            nonlocal now
            while len(positions) < end:
                if ids[len(positions)] == image_token_id and image_grid_thw is not None:
                    raise Refusal(f"row {row} has an image token outside of its images")
                positions.append((now, now, now))
                now += 1

        for start, end, (t, h, w) in zip(starts, ends, grids, strict=False):
            if not len(positions) <= start <= end or end - start != t * h * w:
                raise Refusal(f"row {row} has an image from {start} to {end} for {(t, h, w)}")
            if image_start_token_id in ids[start:end]:
                raise Refusal(f"row {row} has a start inside of the image from {start} to {end}")
            text_until(start)
            positions += _block(now, t, h, w)
            now += max(h, w)
        text_until(len(ids))

        targets = grids[len(ends) :]
        columns: list[Position] = []
        for _, h, w in reversed(targets):
            columns += _block(now, 1, h, w)
            now += max(h, w)
        decode.append([*columns, (now, now, now)] if targets or (grids and always_ends) else [])
        return positions, 0

    answer = _number_rows(input_ids, attention_mask, number, 3, padding_value)
    return answer._replace(decode=decode)


def isaac(
    input_ids: Rows,
    *,
    image_token_id: int,
    spatial_merge_size: int,
    padding_value: int,
    image_grid_thw: Sequence[Grid] | None = None,
    attention_mask: Rows | None = None,
) -> Answer:
    """Number a batch as vLLM's `IsaacForConditionalGeneration.get_mrope_input_positions` does.

    Raises:
        Refusal: if image tokens and grids do not fit each other.
    """
    grids = iter(_real(image_grid_thw or ()))

    def number(row: int, kept: Sequence[int]) -> tuple[list[Position], int]:
        ids = [input_ids[row][i] for i in kept]
        positions: list[Position] = []
        now = after_last = 0
        text_since = 0
        while len(positions) < len(ids):
            if ids[len(positions)] != image_token_id:
                positions.append((now, now, now))
                now += 1
                text_since += 1
                continue
            t, h, w = _take(grids, ids, len(positions), spatial_merge_size, row)
            if t != 1:
                raise Refusal(f"row {row} has an image of {t} frames")
            positions += [(now, y, x) for y in range(h) for x in range(w)]
            after_last, text_since = now + 1, 0
            now = max(now, h - 1, w - 1) + 1
        for i in range(text_since):
            index = len(positions) - text_since + i
            positions[index] = (after_last + i,) * 3
        largest = max((max(position) for position in positions), default=-1)
        return positions, largest + 1 - len(kept)

    answer = _number_rows(input_ids, attention_mask, number, 3, padding_value)
    _refuse_left_over(grids)
    return answer


def bailing(
    input_ids: Rows,
    *,
    image_token_id: int,
    video_token_id: int,
    image_start_token_id: int,
    video_start_token_id: int,
    separate_frames: bool,
    spatial_merge_size: int,
    bounds: tuple[int, int] | None = None,
    image_grid_thw: Sequence[Grid] | None = None,
    video_grid_thw: Sequence[Grid] | None = None,
) -> Answer:
    """Number a batch as SGLang's `bailing_3drope_get_input_positions_tensor` does its only row.

    Raises:
        Refusal: if markers, image and video tokens and grids do not fit each other, or if a
            position is outside of `bounds`: less than the first, or not less than the second.
    """
    videos = _real(video_grid_thw or ())
    if separate_frames:
        videos = [(1, h, w) for t, h, w in videos for _ in range(t)]
    pending = {image_token_id: iter(_real(image_grid_thw or ())), video_token_id: iter(videos)}
    starts = {
        image_token_id: image_start_token_id,
        video_token_id: image_start_token_id if separate_frames else video_start_token_id,
    }

    def number(row: int, kept: Sequence[int]) -> tuple[list[Position], int]:
        ids = [input_ids[row][i] for i in kept]
        positions: list[Position] = []
        now = 0
        while len(positions) < len(ids):
            at = len(positions)
            if ids[at] not in pending:
                positions.append((now, now, now))
                now += 1
                continue
            t, h, w = _take(pending[ids[at]], ids, at, spatial_merge_size, row)
            if not at or ids[at - 1] != starts[ids[at]]:
                raise Refusal(f"row {row} has no start marker before token {at}")
            for f in range(t):
                time = now + 2 * f
                positions += [
                    (time, time + y - (h - 1) // 2, time + x - (w - 1) // 2)
                    for y in range(h)
                    for x in range(w)
                ]
            now += 2 * t - 1
        if bounds is not None and not all(
            bounds[0] <= value < bounds[1] for position in positions for value in position
        ):
            raise Refusal(f"row {row} has a position outside of {bounds}")
        return positions, now - len(ids)

    answer = _number_rows(input_ids, None, number, 3, padding_value=0)
    for grids in pending.values():
        _refuse_left_over(grids)
    return answer


def _number_rows(
    input_ids: Rows,
    attention_mask: Rows | None,
    number: Callable[[int, Sequence[int]], tuple[list[Position], int]],
    num_axes: int,
    padding_value: int,
) -> Answer:
    """Number the unmasked tokens of every row, and spread them over it."""
    axes: list[list[list[int]]] = [[] for _ in range(num_axes)]
    deltas = []
    for row, ids in enumerate(input_ids):
        mask = [1] * len(ids) if attention_mask is None else attention_mask[row]
        kept = [index for index, value in enumerate(mask) if value]
        positions, delta = number(row, kept)
        deltas.append([delta])
        for axis in range(num_axes):
            line = [padding_value] * len(ids)
            for index, position in zip(kept, positions, strict=True):
                line[index] = position[axis]
            axes[axis].append(line)
    return Answer(axes, deltas)


def _real(grids: Sequence[Grid]) -> list[Grid]:
    """Return the grids that are not all zeros, each of which must be positive."""
    for grid in grids:
        if any(grid) and min(grid) < 1:
            raise Refusal(f"{grid} must be positive throughout, or zero throughout")
    return [grid for grid in grids if any(grid)]


def _merged(grid: Grid, merge: int) -> tuple[int, int, int]:
    t, h, w = grid
    if h % merge or w % merge:
        raise Refusal(f"{grid} must be divisible by {merge}")
    return t, h // merge, w // merge


def _take(
    grids: Iterator[Grid], ids: Sequence[int], at: int, merge: int, row: int
) -> tuple[int, int, int]:
    """Take the next grid, for as many equal tokens from `at` on as it asks for."""
    grid = next(grids, None)
    if grid is None:
        raise Refusal(f"row {row} has tokens that no grid is left for")
    t, h, w = _merged(grid, merge)
    if list(ids[at : at + t * h * w]) != [ids[at]] * (t * h * w):
        raise Refusal(f"row {row} ends a run inside {grid}")
    return t, h, w


def _refuse_left_over(grids: Iterator[Grid]) -> None:
    left = next(grids, None)
    if left is not None:
        raise Refusal(f"{left} is left over: no token in any row belongs to it")


def _block(base: int, t: int, h: int, w: int) -> list[Position]:
    return [(base + f, base + y, base + x) for f in range(t) for y in range(h) for x in range(w)]


def _grids_of_row(
    row: int, grids: Sequence[Grid], images_per_sample: Sequence[int] | None
) -> Sequence[Grid]:
    if images_per_sample is None:
        return grids
    start = sum(images_per_sample[:row])
    return grids[start : start + images_per_sample[row]]
