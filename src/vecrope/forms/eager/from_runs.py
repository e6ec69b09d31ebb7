"""The positions of one prompt of which the runs of placeholders are known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from operator import add, gt, not_

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


def positions_of_runs(
    num_tokens: int,
    spec: MRopeSpec,
    runs: tuple[Tensor, Tensor, Tensor],
    grids: tuple[Tensor | None, Tensor | None],
    seconds: Tensor | Sequence[float] | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor] | None:
    """Return positions (3, N) and deltas (1, 1), or None if the runs are not just the groups.

    Args:
        num_tokens: N.
        spec: of the shared rule.
        runs: offsets, lengths and modalities (R,), on a CPU.
        grids: (num_images, 3) and (num_videos, 3), or None.
        seconds: (num_videos,) as `second_per_grid_ts`.
        dtype: of the positions.
    """
    items = read_items(*grids, spec, seconds, lenient=False)
    if items is None or not num_tokens:
        return None
    offsets, lengths, modalities = (numbers.tolist() for numbers in runs)
    number = len(offsets)
    num_images = sum(items.groups[: items.num_images])
    images = [modality == IMAGE for modality in modalities]
    if number != sum(items.groups) or sum(images) != num_images:
        return None
    if modalities.count(VIDEO) != number - num_images:
        return None
    ends = [*map(add, offsets, lengths)]
    if any(map(gt, [0, *ends], [*offsets, num_tokens])):
        return None
    if not spec.frames_may_touch and not set(offsets).isdisjoint(ends):
        return None
    if not number:
        return torch.arange(num_tokens, dtype=dtype, device="cpu").repeat(3, 1), _delta(0)
    # Into the order of the grids: all images, then all videos.
    order = [*compress(range(number), images), *compress(range(number), map(not_, images))]
    groups = make_groups(items)
    if [*map(lengths.__getitem__, order)] != groups.area().tolist():
        return None
    text = text_around(offsets, lengths, num_tokens)
    first = host_tensor(map(offsets.__getitem__, order))
    last = host_tensor(ends[at] - 1 for at in order)
    found = Found(groups, first, last, None, text)
    row_ends = row_ends_of(found, [num_tokens])
    batch = Batch(text, None, None, [0, num_tokens], num_tokens)
    positions = write_positions(batch, found, row_ends, dtype=dtype)
    if outreaches(spec, items):
        row_ends = largest_positions(found, positions[0], row_ends)
    return positions, _delta(row_ends[0] - num_tokens)


def _delta(value: int) -> Tensor:
    return torch.tensor([[value]], device="cpu")
