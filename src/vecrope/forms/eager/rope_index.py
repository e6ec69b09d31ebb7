"""The eager form composed: items, the parts of a batch that stand for them, and positions."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from operator import gt, sub
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from vecrope.forms.eager.groups import Ints, Parts, find_parts
from vecrope.forms.eager.items import read_items
from vecrope.forms.eager.runs import read_runs, row_starts
from vecrope.forms.eager.write import write_positions
from vecrope.inputs import Inputs, on_cpu, positions_dtype
from vecrope.spec import MRopeSpec


class Batch(NamedTuple):
    """A batch on the host: where its rows stand, and what in them is not text."""

    bounds: list[int]  # where each row starts, then N
    parts: Parts
    open_markers: list[int]  # (B,) as `Runs` has them


def eager_rope_index(
    inputs: Inputs, spec: MRopeSpec, *, text_row: bool = False
) -> tuple[Tensor, Tensor]:
    """Return positions (3, B, T), or (3, N), and deltas (B, 1), of checked inputs.

    There is at least one token, on a CPU. A mask that masks nothing is None; `text_row`, which
    needs that, is as `write_positions` has it. A ValueError names what does not fit.
    """
    if _is_text_alone(inputs, spec):
        ids = inputs.input_ids
        dtype = positions_dtype(inputs, spec)
        positions = torch.arange(ids.shape[1], dtype=dtype, device="cpu")
        rope_deltas = torch.zeros((ids.shape[0], 1), dtype=torch.int64, device="cpu")
        return positions.expand(3 + text_row, *ids.shape).contiguous(), rope_deltas
    return number_batch(find_groups(inputs, spec), inputs, spec, text_row=text_row)


def number_batch(
    batch: Batch, inputs: Inputs, spec: MRopeSpec, *, text_row: bool = False
) -> tuple[Tensor, Tensor]:
    """Return what `eager_rope_index` does; `text_row` is that of `write_positions`."""
    bounds, parts, _ = batch
    *_, deltas = ends_of_rows(parts, bounds, spec)
    dtype = positions_dtype(inputs, spec)
    positions = write_positions(parts, bounds, dtype, spec.padding_value, text_row=text_row)
    return positions.view(-1, *inputs.input_ids.shape), as_column(deltas)


def _is_text_alone(inputs: Inputs, spec: MRopeSpec) -> bool:
    """Say whether padded rows are sure to hold nothing but text, and no mask."""
    for grids in (inputs.image_grid_thw, inputs.video_grid_thw):
        if grids is not None and grids.shape[0]:
            return False
    if inputs.attention_mask is not None or inputs.cu_seqlens is not None:
        return False
    if inputs.mm_token_type_ids is not None:
        return not bool(inputs.mm_token_type_ids.any())
    placeholders = (spec.image_token_id, spec.video_token_id)
    return not any(
        token is not None and bool((inputs.input_ids == token).any()) for token in placeholders
    )


def find_groups(inputs: Inputs, spec: MRopeSpec) -> Batch:
    """Return where the rows and the groups of a batch stand; a ValueError names what misfits."""
    items, rows = read_items(inputs, spec), row_starts(inputs)
    runs = read_runs(inputs, spec, rows)
    return Batch(rows, find_parts(runs, items, inputs, spec), runs.open_markers)


def raise_misfit(inputs: Inputs, spec: MRopeSpec) -> NoReturn:
    """Raise the ValueError for a call that another form has found not to fit; synchronises."""
    find_groups(on_cpu(inputs), spec)
    raise AssertionError("another form refuses what the eager form takes")


def as_column(numbers: Sequence[float], dtype: torch.dtype = torch.int64) -> Tensor:
    """Return (B, 1) in int64, int32 or float32."""
    if not numbers:
        return torch.empty((0, 1), dtype=dtype, device="cpu")
    code = {torch.int64: "q", torch.int32: "i", torch.float32: "f"}[dtype]
    return torch.frombuffer(array(code, numbers), dtype=dtype).view(-1, 1)


def ends_of_rows(
    parts: Parts, bounds: Ints, spec: MRopeSpec
) -> tuple[list[int], list[int], list[int]]:
    """Return running positions at `bounds`, and of rows: largest position plus one, and delta."""
    running = parts.running(bounds)
    ends = [*map(sub, running[1:], running)]
    items = parts.items
    # By the rule "hw" a block, which is one group, can reach further than it moves the position.
    further = [*map(gt, items.extent, items.advance)]
    if any(further):
        for base, start, item in zip(parts.bases(), parts.starts, parts.item, strict=True):
            if further[item]:
                row = bisect_right(bounds, start) - 1
                ends[row] = max(ends[row], base - running[row] + items.extent[item])
    counted = parts.kept_before(bounds) if spec.delta_length == "valid" else bounds
    return running, ends, [*map(sub, ends, map(sub, counted[1:], counted))]
