"""The rule of bailing: frames two positions apart, rows and columns centred on their frame's."""

from __future__ import annotations

from itertools import chain, repeat

from vecrope.testing.reference.rows import (
    Answer,
    Position,
    Refusal,
    Rows,
    grids_of,
    number_rows,
    refuse_left_over,
    take_grid,
)


def get_rope_index(
    input_ids: Rows,
    *,
    image_token_id: int,
    video_token_id: int,
    vision_start_token_id: int,
    video_start_token_id: int,
    separate_frames: bool,
    spatial_merge_size: int,
    least_position: int | None = None,
    position_limit: int | None = None,
    image_grid_thw: Rows | None = None,
    video_grid_thw: Rows | None = None,
) -> Answer:
    """Number a batch as SGLang's `bailing_3drope_get_input_positions_tensor` does its only row.

    Raises:
        Refusal: if markers, image and video tokens and grids do not fit each other, or if a
            position is less than `least_position`, or not less than `position_limit`.
    """
    images = list(grids_of("image_grid_thw", image_grid_thw, spatial_merge_size))
    videos = list(grids_of("video_grid_thw", video_grid_thw, spatial_merge_size))
    if separate_frames:
        frames = (repeat(grid._replace(t=1), grid.t) for grid in videos)
        videos = list(chain.from_iterable(frames))
    pending = {image_token_id: iter(images), video_token_id: iter(videos)}
    starts = {
        image_token_id: vision_start_token_id,
        video_token_id: vision_start_token_id if separate_frames else video_start_token_id,
    }

    def number_row(row: int, _kept: list[int], ids: list[int]) -> tuple[list[Position], int]:
        positions: list[Position] = []
        now = 0
        while len(positions) < len(ids):
            first = len(positions)
            if ids[first] not in pending:
                positions.append((now, now, now))
                now += 1
                continue
            grid = take_grid(pending[ids[first]], ids, first, row)
            if not first or ids[first - 1] != starts[ids[first]]:
                raise Refusal(f"row {row} has no start marker before token {first}")
            for frame in range(grid.t):
                time = now + 2 * frame
                positions += [
                    (time, time + y - (grid.h - 1) // 2, time + x - (grid.w - 1) // 2)
                    for y in range(grid.h)
                    for x in range(grid.w)
                ]
            now += 2 * grid.t - 1
        if least_position is not None and position_limit is not None:
            supported = range(least_position, position_limit)
            if not all(value in supported for position in positions for value in position):
                raise Refusal(f"row {row} has a position that is not among {supported}")
        return positions, now

    answer = number_rows(input_ids, None, number_row, padding_value=0)
    refuse_left_over(*pending.values())
    return answer
