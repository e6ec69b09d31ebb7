"""The rule of isaac: an image's rows and columns are counted from 0."""

from __future__ import annotations

from vecrope.testing.reference.rows import (
    Answer,
    Position,
    Refusal,
    Rows,
    grids_of,
    next_position,
    number_rows,
    refuse_left_over,
    take_grid,
)


def get_rope_index(
    input_ids: Rows,
    *,
    image_token_id: int,
    spatial_merge_size: int,
    padding_value: int,
    image_grid_thw: Rows | None = None,
    attention_mask: Rows | None = None,
) -> Answer:
    """Number a batch as vLLM's `IsaacForConditionalGeneration.get_mrope_input_positions` does.

    Raises:
        Refusal: if image tokens and grids do not fit each other.
    """
    grids = iter(list(grids_of("image_grid_thw", image_grid_thw, spatial_merge_size)))

    def number_row(row: int, _kept: list[int], ids: list[int]) -> tuple[list[Position], int]:
        positions: list[Position] = []
        now = after_last = 0
        text_since = 0
        while len(positions) < len(ids):
            if ids[len(positions)] != image_token_id:
                positions.append((now, now, now))
                now += 1
                text_since += 1
                continue
            grid = take_grid(grids, ids, len(positions), row)
            if grid.t != 1:
                raise Refusal(f"row {row} has an image of {grid.t} frames")
            positions += [(now, y, x) for y in range(grid.h) for x in range(grid.w)]
            after_last, text_since = now + 1, 0
            now = max(now, grid.h - 1, grid.w - 1) + 1
        for i in range(text_since):
            index = len(positions) - text_since + i
            positions[index] = (after_last + i,) * 3
        return positions, next_position(positions)

    answer = number_rows(input_ids, attention_mask, number_row, padding_value=padding_value)
    refuse_left_over(grids)
    return answer
