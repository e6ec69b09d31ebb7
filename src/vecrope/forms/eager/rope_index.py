"""The eager form composed: items, what is found of them, whether that fits, and the positions."""

from __future__ import annotations

from operator import gt, mul, sub

import torch
from torch import Tensor

from vecrope.forms.eager.batch import Batch
from vecrope.forms.eager.find import Found, find_by_runs, find_by_tokens, holds_placeholders
from vecrope.forms.eager.items import Items, read_items
from vecrope.forms.eager.write import write_positions
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

# From so many tokens on runs are found faster than tokens.
_RUNS_FROM = 8 * 1024


def eager_rope_index(inputs: Inputs, spec: MRopeSpec) -> tuple[Tensor, Tensor] | None:
    """Return positions (3, B, T), or (3, N), and deltas (B, 1); None if grids and tokens misfit.

    Args:
        inputs: at least one token, on a CPU; types, shapes and the mask's values have been checked,
            and the grids are on any device. `attention_mask` masks something, or is None.
        spec: of the shared rule.
    """
    answer = find_groups(inputs, spec)
    if answer is None:
        return None
    batch, found = answer
    ids = inputs.input_ids
    lengths = num_kept = batch.num_kept()
    if spec.delta_length == "padded":
        lengths = batch.lengths()
    row_ends = num_kept if found is None else row_ends_of(found, num_kept)
    positions = write_positions(
        batch,
        found,
        row_ends,
        padding_value=spec.padding_value,
        dtype=torch.int64 if spec.position_dtype == "int64" else ids.dtype,
    )
    if found is not None and outreaches(spec, found.groups.items):
        row_ends = largest_positions(found, positions[0], row_ends)
    deltas = [[delta] for delta in map(sub, row_ends, lengths)]
    rope_deltas = torch.tensor(deltas, dtype=torch.int64, device="cpu")
    return positions.view(3, *ids.shape), rope_deltas


def find_groups(inputs: Inputs, spec: MRopeSpec) -> tuple[Batch, Found | None] | None:
    """Return the batch and its groups, if there are any; None if grids and tokens misfit.

    Args:
        inputs: as for `eager_rope_index`.
        spec: of the shared rule.
    """
    items = read_items(
        inputs.image_grid_thw,
        inputs.video_grid_thw,
        spec,
        inputs.second_per_grid_ts,
        lenient=inputs.lenient,
    )
    if items is None:
        return None
    batch = _batch_of(inputs)
    found = None
    if any(items.groups):
        found = _find(batch, spec, items, lenient=inputs.lenient)
        if found is None:
            return None
    elif holds_placeholders(batch, spec):
        return None
    if found is not None and not found.groups.number:
        found = None
    return batch, found


def _batch_of(inputs: Inputs) -> Batch:
    ids = inputs.input_ids
    types, mask = inputs.mm_token_type_ids, inputs.attention_mask
    if inputs.cu_seqlens is None:
        num_rows, width = ids.shape
        bounds = [*range(0, ids.numel() + 1, width)] if width else [0] * (num_rows + 1)
    else:
        width, bounds = None, inputs.cu_seqlens.tolist()
    return Batch(
        ids.reshape(-1),
        None if types is None else types.to("cpu").reshape(-1),
        None if mask is None else mask.to("cpu").reshape(-1).bool(),
        bounds,
        width,
    )


def _find(batch: Batch, spec: MRopeSpec, items: Items, *, lenient: bool) -> Found | None:
    if batch.num_tokens >= _RUNS_FROM:
        found = find_by_runs(batch, spec, items)
        found = None if found is None else _fitting(batch, spec, found)
        if found is not None:
            return found
    found = find_by_tokens(batch, spec, items, lenient=lenient)
    return None if found is None else _fitting(batch, spec, found)


def _fitting(batch: Batch, spec: MRopeSpec, found: Found) -> Found | None:
    """Return the groups with their rows, or None where one does not stand as it has to."""
    if not found.groups.number:
        return found
    if batch.num_rows > 1:
        found = found._replace(rows=batch.row_of(found.first))
    return found if _fits(batch, spec, found) else None


def _fits(batch: Batch, spec: MRopeSpec, found: Found) -> bool:
    """Say whether every group stands in one row, in one piece, and as the spec asks."""
    first, last, rows = found.first, found.last, found.rows
    if rows is not None and not torch.equal(rows, batch.row_of(last)):
        return False
    begin, end = first, last
    if not _is_whole(found, begin, end):
        if batch.kept is None or found.placeholders is None:
            return False
        # Without the masked tokens that stand in between.
        rank = batch.kept.cumsum(0)
        begin, end = rank[first], rank[last]
        if not _is_whole(found, begin, end):
            return False
    if spec.marker_rule == "adjacent" and batch.token_types is None:
        if not int(batch.place_in_row(first).amin()):
            return False
        before = batch.input_ids[first - 1].tolist()
        if before.count(spec.vision_start_token_id) < len(before):
            return False
    if not spec.frames_may_touch:
        if batch.kept is not None:
            rank = batch.kept.cumsum(0)
            begin, end = rank[first], rank[last]
        items = found.groups.items
        item = found.groups.column(range(len(items.groups)))
        touches = (item[1:] == item[:-1]) & (item[1:] >= items.num_images)
        touches &= begin[1:] == end[:-1] + 1
        if rows is not None:
            touches &= rows[1:] == rows[:-1]
        return not bool(touches.any())
    return True


def _is_whole(found: Found, begin: Tensor, end: Tensor) -> bool:
    """Say whether the ranks (G,) of the groups' first and last tokens hold each in one piece."""
    return torch.equal(end - begin + 1, found.groups.area())


def row_ends_of(found: Found, num_kept: list[int]) -> list[int]:
    """Return the running position behind each row."""
    items = found.groups.items
    moves = [*map(sub, items.advance, items.area)]
    if found.rows is None:
        return [num_kept[0] + sum(map(mul, items.groups, moves))]
    ends = torch.tensor(num_kept, device="cpu").index_add_(
        0, found.rows, found.groups.column(moves)
    )
    row_ends: list[int] = ends.tolist()
    return row_ends


def outreaches(spec: MRopeSpec, items: Items) -> bool:
    """Say whether a block reaches further than it moves the running position."""
    return spec.span_rule == "hw" and any(map(gt, items.extent, items.advance))


def largest_positions(found: Found, time: Tensor, row_ends: list[int]) -> list[int]:
    """Return one more than the largest position of each row, which may be in a block."""
    extent = found.groups.column(found.groups.items.extent)
    reached = time[found.first].to(torch.int64) + extent
    if found.rows is None:
        return [max(row_ends[0], int(reached.amax()))]
    largest = torch.tensor(row_ends, device="cpu").scatter_reduce_(0, found.rows, reached, "amax")
    ends: list[int] = largest.tolist()
    return ends
