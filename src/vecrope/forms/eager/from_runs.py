"""The groups of prompts whose placeholders are known by offset and length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import add, gt

import torch
from torch import Tensor

from vecrope.core.modality import IMAGE, UNKNOWN_MARKERS, VIDEO
from vecrope.forms.eager.items import read_items
from vecrope.forms.eager.parts import make_parts
from vecrope.forms.eager.rope_index import Batch, as_column, ends_of_rows
from vecrope.forms.eager.write import write_positions
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

# Offsets, lengths, modalities and rows (R,), on a CPU.
Runs = tuple[Tensor, Tensor, Tensor, Tensor | None]


def groups_of_runs(
    counts: Sequence[int],
    spec: MRopeSpec,
    runs: Runs,
    grids: tuple[Tensor | None, Tensor | None],
    seconds: Tensor | Sequence[float] | None,
) -> Batch | None:
    """Return prompts of so many tokens, as packed sequences, and their groups.

    None if the runs are not these, each whole and between the ones before and behind.
    """
    try:
        items = read_items(Inputs(runs[0], *grids, second_per_grid_ts=seconds), spec)
    except ValueError:
        return None
    offsets, lengths, kinds = (numbers.tolist() for numbers in runs[:3])
    bounds = [0, *accumulate(counts)]
    rows = [0] * len(offsets) if runs[3] is None else runs[3].tolist()
    if not {*rows} <= {*range(len(counts))} or not {*kinds} <= {IMAGE, VIDEO}:
        return None
    starts = [*map(add, offsets, map(bounds.__getitem__, rows))]
    stops = [*map(add, starts, lengths)]
    item = items.in_order(kinds)
    if (
        min(offsets, default=0) < 0
        or any(map(gt, stops, [*starts[1:], bounds[-1]]))
        or any(stop > bounds[row + 1] for stop, row in zip(stops, rows, strict=True))
        or not (spec.frames_may_touch or set(starts).isdisjoint(stops))
        or len(item) < sum(items.groups)
        or lengths != [*map(items.area.__getitem__, item)]
    ):
        return None
    open_markers = [0 if spec.marker_rule == "none" else UNKNOWN_MARKERS] * len(counts)
    return Batch(bounds, make_parts(items, starts, stops, item, [0] * len(item)), open_markers)


def positions_of_runs(batch: Batch, spec: MRopeSpec, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return positions (3, N) and deltas (B, 1) of the groups of runs, of one token at least."""
    bounds, parts, _ = batch
    _, deltas = ends_of_rows(parts, bounds, spec)
    return write_positions(parts, bounds, dtype), as_column(deltas)
