"""The groups, and positions, of prompts of which the runs of placeholders are known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, compress
from operator import add, gt, lt, not_, sub

import torch
from torch import Tensor

from vecrope.core.modality import IMAGE, VIDEO
from vecrope.forms.eager.batch import Batch
from vecrope.forms.eager.find import Found
from vecrope.forms.eager.groups import host_tensor, make_groups, text_around
from vecrope.forms.eager.items import read_items
from vecrope.forms.eager.rope_index import largest_positions, outreaches, row_ends_of
from vecrope.forms.eager.write import write_positions
from vecrope.spec import MRopeSpec

# Offsets, lengths, modalities and rows (R,), on a CPU.
Runs = tuple[Tensor, Tensor, Tensor, Tensor | None]


def groups_of_runs(
    counts: Sequence[int],
    spec: MRopeSpec,
    runs: Runs,
    grids: tuple[Tensor | None, Tensor | None],
    seconds: Tensor | Sequence[float] | None,
) -> tuple[Batch, Found | None] | None:
    """Return prompts, as packed sequences, and their groups; None if the runs are not these.

    Args:
        counts: tokens of each prompt.
        spec: of the shared rule.
        runs: of placeholders.
        grids: (num_images, 3) and (num_videos, 3), or None.
        seconds: (num_videos,) as `second_per_grid_ts`.
    """
    items = read_items(*grids, spec, seconds, lenient=False)
    if items is None:
        return None
    offsets, lengths, modalities = (numbers.tolist() for numbers in runs[:3])
    bounds = [0, *accumulate(counts)]
    rows = [0] * len(offsets) if runs[3] is None else runs[3].tolist()
    if rows and not 0 <= min(rows) <= max(rows) < len(counts):
        return None
    number, num_images = len(offsets), sum(items.groups[: items.num_images])
    images = [modality == IMAGE for modality in modalities]
    if number != sum(items.groups) or sum(images) != num_images:
        return None
    if modalities.count(VIDEO) != number - num_images or any(map(lt, offsets, [0] * number)):
        return None
    begins = [*map(add, offsets, map(bounds.__getitem__, rows))]
    ends = [*map(add, begins, lengths)]
    if any(map(gt, [0, *ends], [*begins, bounds[-1]])):
        return None
    if any(end > bounds[row + 1] for end, row in zip(ends, rows, strict=True)):
        return None
    if not spec.frames_may_touch and not set(begins).isdisjoint(ends):
        return None
    # Of the tokens nothing is read.
    batch = Batch(runs[0], None, None, bounds, None)
    if not number:
        return batch, None
    # Into the order of the grids: all images, then all videos.
    order = [*compress(range(number), images), *compress(range(number), map(not_, images))]
    groups = make_groups(items)
    if [*map(lengths.__getitem__, order)] != groups.area().tolist():
        return None
    first, last = (
        host_tensor(map(begins.__getitem__, order)),
        host_tensor(ends[at] - 1 for at in order),
    )
    found = Found(groups, first, last, None, None)
    if len(counts) > 1:
        found = found._replace(rows=host_tensor(map(rows.__getitem__, order)))
    return batch, found


def positions_of_runs(
    batch: Batch, found: Found | None, spec: MRopeSpec, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return positions (3, N) and deltas (B, 1) of the groups of runs, of one token at least."""
    lengths = row_ends = batch.lengths()
    if found is not None:
        row_ends = row_ends_of(found, lengths)
        runs = sorted(zip(found.first.tolist(), found.groups.area().tolist(), strict=True))
        found = found._replace(text=text_around(*zip(*runs, strict=True), batch.num_tokens))
    if batch.num_rows == 1:
        batch = batch._replace(width=batch.num_tokens)
    positions = write_positions(batch, found, row_ends, dtype=dtype)
    if found is not None and outreaches(spec, found.groups.items):
        row_ends = largest_positions(found, positions[0], row_ends)
    deltas = [[delta] for delta in map(sub, row_ends, lengths)]
    return positions, torch.tensor(deltas, dtype=torch.int64, device="cpu")
