"""The positions of one prompt of which the runs of placeholders are known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, repeat
from operator import add, gt

import torch
from torch import Tensor

from vecrope.core.modality import IMAGE, VIDEO
from vecrope.forms.eager.items import read_items
from vecrope.forms.eager.parts import Part, make_parts
from vecrope.forms.eager.rope_index import next_positions
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
    starts, lengths, kinds = (numbers.tolist() for numbers in runs)
    stops = [*map(add, starts, lengths)]
    if any(map(gt, [0, *stops], [*starts, num_tokens])):
        return None
    if not spec.frames_may_touch and not set(starts).isdisjoint(stops):
        return None
    groups: list[Part] = []
    for kind in (IMAGE, VIDEO):
        item = items.of_groups(kind)
        of_kind = [other == kind for other in kinds]
        if [*compress(lengths, of_kind)] != [*map(items.area.__getitem__, item)]:
            return None
        groups += zip(compress(starts, of_kind), compress(stops, of_kind), item, repeat(0))
    if len(groups) < len(starts):
        return None
    parts, bounds = make_parts(items, sorted(groups)), [0, num_tokens]
    delta = next_positions(parts, bounds, spec)[0] - num_tokens
    return write_positions(parts, bounds, dtype), torch.tensor([[delta]], device="cpu")
