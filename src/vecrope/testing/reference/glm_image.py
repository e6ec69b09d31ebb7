"""The rule of glm_image: images between markers, and grids of images still to be generated."""

from __future__ import annotations

from collections.abc import Sequence

from vecrope.testing.reference.rows import Answer, Position, Refusal, Rows, grids_of, number_rows


def get_rope_index(
    input_ids: Rows,
    *,
    image_token_id: int,
    image_start_token_id: int,
    image_end_token_id: int,
    padding_value: int,
    convention: str,
    multi_frame_images: bool,
    image_grid_thw: Rows | None = None,
    images_per_sample: Sequence[int] | None = None,
    attention_mask: Rows | None = None,
    decode: list[list[Position]] | None = None,
) -> Answer:
    """Number a batch as transformers' `GlmImageModel.get_rope_index` and SGLang's processor do.

    By the convention of transformers a row that has grids, and no image left to generate, still has
    its end. The positions that follow each row's prompt are appended to `decode`.

    Raises:
        Refusal: if markers, image tokens and grids do not fit each other.
    """

    def number_row(row: int, kept: list[int], ids: list[int]) -> tuple[list[Position], int]:
        own: Rows = image_grid_thw or ()
        if images_per_sample is not None:
            first = sum(images_per_sample[:row])
            own = own[first : first + images_per_sample[row]]
        grids = list(grids_of("image_grid_thw", own, 1))
        if not multi_frame_images and any(grid.t > 1 for grid in grids):
            raise Refusal(f"row {row} has an image of several frames")
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

        for start, end, grid in zip(starts, ends, grids, strict=False):
            if not len(positions) <= start <= end or end - start != grid.t * grid.h * grid.w:
                raise Refusal(f"row {row} has an image from {start} to {end} for {grid.source}")
            if image_start_token_id in ids[start:end]:
                raise Refusal(f"row {row} has a start inside of the image from {start} to {end}")
            text_until(start)
            positions += grid.cells(now)
            now += max(grid.h, grid.w)
        text_until(len(ids))

        targets = grids[len(ends) :]
        following: list[Position] = []
        for grid in reversed(targets):
            following += grid._replace(t=1).cells(now)
            now += max(grid.h, grid.w)
        if targets or (grids and convention == "transformers"):
            following.append((now, now, now))
        if decode is not None:
            decode.append(following)
        return positions, len(kept)

    return number_rows(input_ids, attention_mask, number_row, padding_value=padding_value)
