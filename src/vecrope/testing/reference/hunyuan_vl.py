"""The rule of hunyuan_vl: every token has its index, images their columns, rows and number."""

from __future__ import annotations

from itertools import groupby

from vecrope.testing.reference.rows import (
    IMAGE,
    Answer,
    Position,
    Refusal,
    Rows,
    grids_of,
    next_position,
    number_rows,
    refuse_left_over,
)


def get_rope_index(
    input_ids: Rows,
    *,
    num_axes: int,
    image_token_id: int,
    spatial_merge_size: int,
    image_grid_thw: Rows | None = None,
    attention_mask: Rows | None = None,
    mm_token_type_ids: Rows | None = None,
) -> Answer:
    """Number a batch as transformers' `HunYuanVLModel.get_rope_index` does.

    Raises:
        Refusal: if runs of image tokens and grids do not fit each other.
    """
    grids = grids_of("image_grid_thw", image_grid_thw, spatial_merge_size)
    pending = iter(list(enumerate(grids)))

    def number_row(row: int, kept: list[int], ids: list[int]) -> tuple[list[Position], int]:
        if mm_token_type_ids is None:
            types = [token == image_token_id for token in ids]
        else:
            types = [mm_token_type_ids[row][index] == IMAGE for index in kept]
        positions: list[Position] = []
        for is_image, run in groupby(types):
            length, start = len(list(run)), len(positions)
            plain: list[Position] = [(start + i,) * num_axes for i in range(length)]
            if is_image and image_grid_thw is not None:
                ordinal, grid = next(pending, (0, None))
                if grid is None:
                    raise Refusal(f"row {row} has a run of image tokens that no grid is left for")
                cells = [(x, y, ordinal) for y in range(grid.h) for x in range(grid.w + 1)]
                around = (length - len(cells)) // 2
                if length - len(cells) not in (0, 2):
                    raise Refusal(f"row {row} has {length} tokens for {grid.source}")
                for i, cell in enumerate(cells):
                    index = start + around + i
                    plain[around + i] = (*((index,) * (num_axes - 3)), *cell)
            positions += plain
        return positions, next_position(positions)

    answer = number_rows(input_ids, attention_mask, number_row, num_axes=num_axes, padding_value=0)
    refuse_left_over(grid for _, grid in pending)
    return answer
