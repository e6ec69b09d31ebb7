"""Prompts read and numbered on the host."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.modality import IMAGE
from vecrope.families.rules import GlmImage
from vecrope.forms.eager.groups import PATCH_SIZES, in_pixels, why_short
from vecrope.forms.eager.items import read_items
from vecrope.forms.eager.runs import END, START, runs_of_ids
from vecrope.inputs import Inputs
from vecrope.own_rules.common import Tokens, refuse_videos, tokens_of
from vecrope.own_rules.glm_image.generated import Tail
from vecrope.own_rules.layout import Layout, Piece, write_pieces
from vecrope.spec import MRopeSpec

Grid = tuple[int, int, int]


class Row(NamedTuple):
    """A row of a batch."""

    start: int  # index of its first token
    stop: int
    sources: list[tuple[int, int, Grid]]  # first token, the one behind the last, and the grid
    targets: list[Grid]  # of images to be generated, in the order of the grids
    num_grids: int

    def generated(self, spec: MRopeSpec) -> tuple[list[tuple[int, int, int]], int, int]:
        """Return the images that follow, the position of their end, and how many tokens that is.

        Of an image the running position, height and width.
        """
        moved = (max(grid[1:]) - (stop - start) for start, stop, grid in self.sources)
        now, tokens, images = self.stop - self.start + sum(moved), 0, []
        for _, height, width in reversed(self.targets):
            images.append((now, height, width))
            now, tokens = now + max(height, width), tokens + height * width
        has_end = tokens if spec.convention == "sglang" else self.num_grids
        return images, now, tokens + 1 if has_end else 0


def read_rows(tokens: Tokens, spec: MRopeSpec) -> list[Row]:
    """Return the rows of a batch.

    Raises:
        ValueError: for the first thing that does not fit.
    """
    rule, inputs, bounds = spec.own_rule, tokens.inputs, tokens.bounds
    assert isinstance(rule, GlmImage)
    check_arguments(inputs, spec, len(bounds) - 1)
    given: tuple[tuple[int | None, int], ...] = (
        (rule.image_start_token_id, START),
        (rule.image_end_token_id, END),
    )
    if inputs.image_grid_thw is not None:
        given = *given, (spec.image_token_id, IMAGE)
    runs = runs_of_ids(tokens.ids, given, bounds)
    starts, stops, _ = runs.of(IMAGE)
    placeholders, rows = [*zip(starts, stops, strict=True)], []
    for row, ((at, end), own) in enumerate(
        zip(pairwise(bounds), _grids_of_rows(inputs, spec, len(bounds) - 1), strict=True)
    ):
        opens, closes = (tokens_of(runs, row, (kind,)) for kind in (START, END))
        sources = [
            (start + 1, stop, grid) for start, stop, grid in zip(opens, closes, own, strict=False)
        ]
        inside = zip(sources, [*opens[1:], end], strict=False)
        for number, ((start, stop, grid), following) in enumerate(inside):
            if following < stop:
                raise tokens.error(
                    following, "an image starts inside of another, which has not ended"
                )
            frames, height, width = grid
            found = max(stop - start, 0)
            if found != frames * height * width:
                fits = (found * size**2 == frames * height * width for size in PATCH_SIZES)
                remark = in_pixels("image_grid_thw", fits)
                raise checks.RowError.of(
                    row,
                    f", image {number}: its grid {grid} needs {frames * height * width} tokens "
                    f"between its markers, got {found}"
                    + why_short("image", remark, unexpanded=found == 1),
                )
        rows.append(Row(at, end, sources, own[len(closes) :], len(own)))
    _check_inside(tokens, placeholders, rows)
    return rows


def _check_inside(tokens: Tokens, placeholders: Iterable[tuple[int, int]], rows: list[Row]) -> None:
    """Check that runs of placeholders are inside of sources."""
    stops = [stop for row in rows for _, stop, _ in row.sources]
    starts = [start for row in rows for start, _, _ in row.sources]
    for start, stop in placeholders:
        source = bisect_right(starts, start) - 1
        if source < 0 or stop > stops[source]:
            astray = start if source < 0 else max(start, stops[source])
            complete = len(rows[tokens.row_of(astray)].sources)
            raise tokens.error(
                astray,
                "an image token must stand between the markers of an image that has a grid, got "
                f"one outside of the {complete} such images; was the prompt truncated inside the "
                "image?",
            )


def check_arguments(inputs: Inputs, spec: MRopeSpec, num_rows: int) -> None:
    """Check what no value tells."""
    refuse_videos(inputs, spec)
    if inputs.mm_token_type_ids is not None:
        raise ValueError(
            f"mm_token_type_ids must be None: {spec.model_type} reads its images off their markers"
        )
    per_row = inputs.images_per_sample
    if per_row is not None:
        checks.check_integral("images_per_sample", per_row)
        if per_row.shape != (num_rows,):
            raise ValueError(
                f"images_per_sample must have shape ({num_rows},), got {tuple(per_row.shape)}"
            )


def _grids_of_rows(inputs: Inputs, spec: MRopeSpec, num_rows: int) -> list[list[Grid]]:
    """Return the grids of each row, less those of zeros."""
    grids: list[Grid] = []
    if inputs.image_grid_thw is not None:
        read_items(inputs, spec)  # which checks them
        grids = [(frames, tall, wide) for frames, tall, wide in inputs.image_grid_thw.tolist()]
    if inputs.images_per_sample is None:
        return [[grid for grid in grids if any(grid)]] * num_rows
    rows, done = [], 0
    for row, number in enumerate(inputs.images_per_sample.tolist()):
        if number < 0:
            raise ValueError(f"images_per_sample must not be negative, got {number} for row {row}")
        rows.append([grid for grid in grids[done : done + number] if any(grid)])
        done += number
    if done > len(grids) or any(map(any, grids[done:])):
        raise ValueError(
            f"images_per_sample must sum to the {len(grids)} rows of image_grid_thw, of which "
            f"only zeros may be left, got {done}"
        )
    return rows


def lay_out_glm_image(tokens: Tokens, spec: MRopeSpec) -> Layout:
    """Lay the prompts out; the errors are of `read_rows`."""
    layout, rows = Layout(tokens), read_rows(tokens, spec)
    for row, _ in zip(rows, layout.rows(()), strict=True):
        for start, _, (frames, height, width) in row.sources:
            layout.text(start)
            now = layout.now
            for frame in range(frames):
                layout.frame(now + frame, range(now, now + height), range(now, now + width))
            layout.now = now + max(height, width)
    # What follows is numbered by `decode_positions`, and no delta leads there.
    layout.ends = [row.stop - row.start for row in rows]
    return layout


def decode_positions(
    rows: list[Row], spec: MRopeSpec, max_decode_tokens: int | None
) -> tuple[Tensor, Tensor]:
    """Return what `get_decode_position_ids` does, on the host."""
    rows_generated = [row.generated(spec) for row in rows]
    lengths = [length for _, _, length in rows_generated]
    most = max(lengths, default=0)
    columns = most if max_decode_tokens is None else max_decode_tokens
    if columns < most:
        raise ValueError(
            f"max_decode_tokens must be at least {most} for row {lengths.index(most)}, "
            f"got {max_decode_tokens}"
        )
    pieces: list[Piece] = []
    for images, end, length in rows_generated:
        pieces += [(at, range(at, at + tall), range(at, at + wide)) for at, tall, wide in images]
        pieces.append((end, (end,), (end,) * (columns - max(length - 1, 0))))
    positions = write_pieces(pieces, len(rows) * columns).view(3, len(rows), columns)
    positions = positions.transpose(0, 1).contiguous()
    return positions, torch.tensor(lengths, dtype=torch.int64, device="cpu")


def tail_of_rows(rows: list[Row], spec: MRopeSpec) -> Tail:
    """Return what rows generate."""
    of_images, of_rows, first = [], [], 0
    for images, end, length in (row.generated(spec) for row in rows):
        of_rows.append((first, length, end))
        for at, height, width in images:
            of_images.append((first, at, width))
            first += height * width
    of_images.append((first, 1, 1))
    return Tail(*(torch.tensor(each, device="cpu").t() for each in (of_images, of_rows)))
