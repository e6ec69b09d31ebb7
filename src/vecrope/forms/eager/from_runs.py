"""The positions of one prompt of which the runs of placeholders are known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from operator import add, gt

import torch
from torch import Tensor

from vecrope.core.modality import IMAGE, TEXT, VIDEO
from vecrope.forms.eager.items import read_items
from vecrope.forms.eager.parts import find_parts
from vecrope.forms.eager.rope_index import next_positions
from vecrope.forms.eager.runs import Runs
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
    """Return positions (3, N) and deltas (1, 1), or None if the runs do not hold just the groups.

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
    if any(map(gt, [0, *stops], [*starts, num_tokens])) or min(lengths, default=1) < 1:
        return None
    if not spec.frames_may_touch and not set(starts).isdisjoint(stops):
        return None
    if not {IMAGE, VIDEO}.issuperset(kinds):
        return None
    with_text = Runs(
        [TEXT, *chain.from_iterable(zip(kinds, repeat(TEXT), strict=False))],
        [0, *chain.from_iterable(zip(starts, stops, strict=True)), num_tokens],
        [0, 2 * len(kinds) + 1],
    )
    parts = find_parts(with_text, items, spec, by_types=True, lenient=False)
    if parts is None:
        return None
    bounds = [0, num_tokens]
    delta = next_positions(parts, bounds, spec)[0] - num_tokens
    return write_positions(parts, bounds, dtype), torch.tensor([[delta]], device="cpu")
