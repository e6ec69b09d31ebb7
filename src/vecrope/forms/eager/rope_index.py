"""The eager form composed: items, the parts of the batch that they are found in, and positions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import gt, sub
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.forms.eager.items import read_items
from vecrope.forms.eager.parts import Parts, find_parts
from vecrope.forms.eager.runs import read_runs
from vecrope.forms.eager.write import write_positions
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec


class Batch(NamedTuple):
    """A batch on the host: where its rows stand, and what in them is not text."""

    bounds: list[int]  # where each row starts, then N
    parts: Parts


def eager_rope_index(inputs: Inputs, spec: MRopeSpec) -> tuple[Tensor, Tensor] | None:
    """Return positions (3, B, T), or (3, N), and deltas (B, 1); None if grids and tokens misfit.

    Args:
        inputs: at least one token, on a CPU; types, shapes and the mask's values have been checked,
            and the grids are on any device. `attention_mask` masks something, or is None.
        spec: of the shared rule.
    """
    batch = find_groups(inputs, spec)
    if batch is None:
        return None
    bounds, parts = batch
    ids, mask = inputs.input_ids, inputs.attention_mask
    dtype = torch.int64 if spec.position_dtype == "int64" else ids.dtype
    positions = write_positions(parts, bounds, dtype, mask, spec.padding_value)
    ends = next_positions(parts, bounds, spec)
    lengths = [*map(sub, bounds[1:], bounds)]
    if mask is not None and spec.delta_length == "valid":
        masked = parts.masked_before(bounds)
        lengths = [*map(sub, lengths, map(sub, masked[1:], masked))]
    deltas = [[delta] for delta in map(sub, ends, lengths)]
    return positions.view(3, *ids.shape), torch.tensor(deltas, dtype=torch.int64, device="cpu")


def find_groups(inputs: Inputs, spec: MRopeSpec) -> Batch | None:
    """Return where the rows and the groups of a batch stand; None if grids and tokens misfit.

    Args:
        inputs: as for `eager_rope_index`.
        spec: of the shared rule.
    """
    ids, types, bounds = inputs.input_ids, inputs.mm_token_type_ids, inputs.cu_seqlens
    items = read_items(
        inputs.image_grid_thw,
        inputs.video_grid_thw,
        spec,
        inputs.second_per_grid_ts,
        lenient=inputs.lenient,
    )
    if items is None:
        return None
    if bounds is None:
        batch, seq_len = ids.shape
        rows = [*range(0, batch * seq_len + 1, seq_len)]
    else:
        rows = bounds.tolist()
    runs = read_runs(inputs, spec, rows)
    parts = find_parts(runs, items, spec, by_types=types is not None, lenient=inputs.lenient)
    return None if parts is None else Batch(rows, parts)


def next_positions(parts: Parts, bounds: Sequence[int], spec: MRopeSpec) -> list[int]:
    """Return one more than the largest position of each row."""
    running = parts.running(bounds)
    ends = [*map(sub, running[1:], running)]
    items = parts.items
    if spec.span_rule == "hw" and any(map(gt, items.extent, items.advance)):
        # A block, which is one group, can reach further than it moves the running position.
        extent = [*items.extent, 0]
        for start, item, moved in zip(parts.starts, parts.item, parts.moved, strict=False):
            row = bisect_right(bounds, start) - 1
            ends[row] = max(ends[row], start + moved - running[row] + extent[item])
    return ends
