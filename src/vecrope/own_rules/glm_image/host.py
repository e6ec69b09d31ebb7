"""Prompts on a CPU that no mask interrupts: read and numbered on the host."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.modality import IMAGE
from vecrope.families.rules import GlmImage
from vecrope.forms.eager.items import read_grids
from vecrope.forms.eager.runs import END, START, row_starts, runs_of_ids
from vecrope.inputs import Inputs
from vecrope.own_rules.common import can_read
from vecrope.own_rules.layout import Layout
from vecrope.spec import MRopeSpec

Grid = tuple[int, int, int]


class Row(NamedTuple):
    """A row of a batch."""

    start: int  # index of its first token
    stop: int
    sources: list[tuple[int, int, Grid]]  # first token, the one behind the last, and the grid
    targets: list[Grid]  # of images to be generated, in the order of the grids
    num_grids: int

    @property
    def end(self) -> int:
        """The running position behind the prompt."""
        moved = sum(max(grid[1:]) - (stop - start) for start, stop, grid in self.sources)
        return self.stop - self.start + moved


def read_rows(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> list[Row] | None:
    """Return the rows of a batch; None where it is not to be read here, or does not fit."""
    if not can_read(inputs, validate=validate) or inputs.mm_token_type_ids is not None:
        return None
    rule, bounds, ids = spec.own_rule, row_starts(inputs), inputs.input_ids
    assert isinstance(rule, GlmImage)
    given: tuple[tuple[int | None, int], ...] = (
        (rule.image_start_token_id, START),
        (rule.image_end_token_id, END),
    )
    grids = _grids_of_rows(inputs, spec, len(bounds) - 1)
    if grids is None:
        return None
    if inputs.image_grid_thw is not None:
        given = *given, (spec.image_token_id, IMAGE)
    runs = runs_of_ids(ids, given, bounds)
    rows = []
    for (at, stop), (first, last), own in zip(
        pairwise(bounds), pairwise(runs.rows), grids, strict=True
    ):
        markers: dict[int, list[int]] = {START: [], END: []}
        placeholders = []
        for run in range(first, last):
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


def prompt_positions(rows: list[Row]) -> Tensor:
    """Return the positions (3, N) of the prompts."""
    layout = Layout(rows[-1].stop)
    for row in rows:
        done, now = row.start, 0
        for start, stop, (frames, height, width) in row.sources:
            layout.count(now, start - done)
            now += start - done
            for frame in range(frames):
                layout.cells(now + frame, range(now, now + height), range(now, now + width))
            now, done = now + max(height, width), stop
        layout.count(now, row.stop - done)
    return layout.positions()


def decode_positions(
    rows: list[Row], spec: MRopeSpec, max_decode_tokens: int | None
) -> tuple[Tensor, Tensor] | None:
    """Return what `get_decode_position_ids` does; None where it is to be refused, or is empty."""
    generated = [sum(height * width for _, height, width in row.targets) for row in rows]
    lengths = [
        tokens + 1 if (tokens if spec.convention == "sglang" else row.num_grids) else 0
        for row, tokens in zip(rows, generated, strict=True)
    ]
    columns = max(lengths) if max_decode_tokens is None else max_decode_tokens
    if not 0 < columns >= max(lengths):
        return None
    layout = Layout(len(rows) * columns)
    for row, tokens in zip(rows, generated, strict=True):
        now = row.end
        for _, height, width in reversed(row.targets):
            layout.cells(now, range(now, now + height), range(now, now + width))
            now += max(height, width)
        layout.still(now, columns - tokens)
    positions = layout.positions().view(3, len(rows), columns).transpose(0, 1)
    return positions.contiguous(), torch.tensor(lengths, device="cpu")
