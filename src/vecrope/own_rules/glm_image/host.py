"""Prompts read and numbered on the host."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.modality import IMAGE
from vecrope.families.rules import GlmImage
from vecrope.forms.eager.items import read_grids
from vecrope.forms.eager.runs import END, START, runs_of_ids
from vecrope.inputs import Inputs
from vecrope.own_rules.common import Tokens, refuse_videos
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


def read_rows(tokens: Tokens, spec: MRopeSpec) -> list[Row] | None:
    """Return the rows of a batch; None where it does not fit."""
    rule, inputs, bounds = spec.own_rule, tokens.inputs, tokens.bounds
    assert isinstance(rule, GlmImage)
    refuse_videos(inputs, spec)
    if inputs.mm_token_type_ids is not None:
        return None
    given: tuple[tuple[int | None, int], ...] = (
        (rule.image_start_token_id, START),
        (rule.image_end_token_id, END),
    )
    grids = _grids_of_rows(inputs, spec, len(bounds) - 1)
    if grids is None:
        return None
    if inputs.image_grid_thw is not None:
        given = *given, (spec.image_token_id, IMAGE)
    runs = runs_of_ids(tokens.ids, given, bounds)
    rows = []
    for number, ((at, stop), own) in enumerate(zip(pairwise(bounds), grids, strict=True)):
        markers: dict[int, list[int]] = {START: [], END: []}
        placeholders = []
        for run in range(*runs.rows[number : number + 2]):
            kind = runs.kinds[run]
            if kind in markers:
                markers[kind] += range(runs.starts[run], runs.starts[run + 1])
            elif kind == IMAGE:
                placeholders.append((runs.starts[run], runs.starts[run + 1]))
        opens, closes = markers[START], markers[END]
        sources = [
            (start + 1, end, grid) for start, end, grid in zip(opens, closes, own, strict=False)
        ]
        for (start, end, (frames, height, width)), following in zip(
            sources, [*opens[1:], stop], strict=False
        ):
            if end - start != frames * height * width or following < end:
                return None
        inside = iter(sources)
        source = next(inside, None)
        for start, end in placeholders:
            while source is not None and source[1] <= start:
                source = next(inside, None)
            if source is None or not source[0] <= start < end <= source[1]:
                return None
        rows.append(Row(at, stop, sources, own[len(closes) :], len(own)))
    return rows


def _grids_of_rows(inputs: Inputs, spec: MRopeSpec, num_rows: int) -> list[list[Grid]] | None:
    """Return the grids of each row, less those of zeros."""
    if inputs.image_grid_thw is None or not inputs.image_grid_thw.shape[0]:
        return [[]] * num_rows if inputs.images_per_sample is None else None
    grids = inputs.image_grid_thw.tolist()
    if read_grids(grids, len(grids), spec, round_grid_sides=False) is None:
        return None
    per_row = inputs.images_per_sample
    if per_row is None:
        return [[tuple(grid) for grid in grids if any(grid)]] * num_rows
    checks.check_integral("images_per_sample", per_row)
    if per_row.shape != (num_rows,) or bool((per_row < 0).any()):
        return None
    rows, done = [], 0
    for number in per_row.tolist():
        rows.append([tuple(grid) for grid in grids[done : done + number] if any(grid)])
        done += number
    left_over = len(grids) < done or any(map(any, grids[done:]))
    return None if left_over else rows


def lay_out_glm_image(tokens: Tokens, spec: MRopeSpec) -> Layout | None:
    """Lay the prompts out; None where they do not fit."""
    rows = read_rows(tokens, spec)
    if rows is None:
        return None
    layout = Layout(tokens)
    for row in rows:
        done, now = row.start, 0
        for start, stop, (frames, height, width) in row.sources:
            layout.count(now, start - done)
            now += start - done
            for frame in range(frames):
                layout.cells(now + frame, range(now, now + height), range(now, now + width))
            now, done = now + max(height, width), stop
        layout.count(now, row.stop - done)
        # What follows is numbered by `decode_positions`, and no delta leads there.
        layout.end_row(row.stop - row.start)
    return layout


def decode_positions(
    rows: list[Row], spec: MRopeSpec, max_decode_tokens: int | None
) -> tuple[Tensor, Tensor] | None:
    """Return what `get_decode_position_ids` does; None where it is to be refused, or is empty."""
    rows_generated = [row.generated(spec) for row in rows]
    lengths = [length for _, _, length in rows_generated]
    columns = max(lengths) if max_decode_tokens is None else max_decode_tokens
    if not 0 < columns >= max(lengths):
        return None
    pieces: list[Piece] = []
    for images, end, length in rows_generated:
        pieces += [(at, range(at, at + tall), range(at, at + wide)) for at, tall, wide in images]
        pieces.append((end, (end,), (end,) * (columns - max(length - 1, 0))))
    positions = write_pieces(pieces, len(rows) * columns).view(3, len(rows), columns)
    return positions.transpose(0, 1).contiguous(), torch.tensor(lengths, device="cpu")


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
