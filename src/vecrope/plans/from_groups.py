"""The plan of a batch whose groups were found: the eager form."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from operator import add, itemgetter, neg, sub

import torch
from torch import Tensor

from vecrope.core.items import has_time_scale
from vecrope.forms.eager.items import Items
from vecrope.forms.eager.rope_index import Batch, ends_of_rows
from vecrope.plans.group_plan import GroupPlan
from vecrope.plans.table import WIDE_FROM, fields_of, host_table
from vecrope.spec import MRopeSpec


def plan_of_groups(
    batch: Batch, spec: MRopeSpec, dtype: torch.dtype, shape: Sequence[int] | None = None
) -> GroupPlan:
    """Return the plan of a batch on the host's CPU.

    Args:
        batch: its rows, and what in them is not text.
        spec: of the shared rule.
        dtype: of the positions.
        shape: of the input; None: (N,).
    """
    bounds, parts, open_markers = batch
    lengths = map(sub, bounds[1:], bounds)
    rows = zip(bounds[:-1], lengths, *ends_of_rows(parts, bounds, spec), open_markers, strict=True)
    # Where videos are spaced in time an entry has the item of its group behind all else.
    timed, wide = has_time_scale(spec), bounds[-1] >= WIDE_FROM
    entries = host_table(_entries(batch, spec.padding_value, 7 + timed), wide=wide)
    return GroupPlan(
        rows=host_table([*rows], wide=True),
        entries=entries[:, :7].contiguous() if timed else entries,
        time_scale=_time_scale(parts.items, entries[:, 7], spec) if timed else entries[:, 7:],
        **fields_of(shape or bounds[-1:], spec, dtype),
    )


def _entries(batch: Batch, padding_value: int, width: int) -> list[tuple[int, ...]]:
    """Return the entries of a plan, of 7 numbers or 8, of which the last is the group's item.

    Of what begins at one token a row's bound comes first, and then a masked run.
    """
    bounds, parts, _ = batch
    items, (starts, stops) = parts.items, parts.masked
    running = parts.running(bounds)

    def positions(bases: list[int], at: Sequence[int]) -> list[int]:
        """Return the positions of ascending tokens, each in its own row."""
        before = [bisect_left(at, bound) for bound in bounds]
        begins = chain.from_iterable(map(repeat, running, map(sub, before[1:], before)))
        return [*map(sub, bases, begins)]

    base = positions(parts.bases(), parts.starts)
    advance, height, width_of = (
        map(numbers.__getitem__, parts.item)
        for numbers in (items.advance, items.height, items.width)
    )
    tokens = map(sub, parts.stops, parts.starts)
    behind = map(add, base, advance)
    groups = (parts.starts, tokens, base, behind, height, width_of, parts.before, parts.item)
    text, zero, one = repeat(len(items.area)), repeat(0), repeat(1)
    rows = (bounds[:-1], zero, zero, zero, one, one, zero, text)
    kinds: list[tuple[Iterable[int], ...]] = [rows, groups]
    if starts:
        sizes, after = [*map(sub, stops, starts)], positions(parts.running(starts), starts)
        padding = repeat(padding_value)
        kinds.insert(1, (starts, sizes, padding, after, one, one, map(neg, sizes), text))
    columns = chain.from_iterable(zip(*kind[:width], strict=False) for kind in kinds)
    return sorted(columns, key=itemgetter(0))


def _time_scale(items: Items, item: Tensor, spec: MRopeSpec) -> Tensor:
    """Return `GroupPlan.time_scale` of the entries of some items."""
    num_images = items.num_images
    still = spec.image_time == "none" and max(items.depth[:num_images], default=1) > 1
    if items.time_scale is None and not still:
        return torch.ones((len(item), 2), dtype=torch.int32, device="cpu")
    videos = len(items.area) - num_images
    dtype, *factors = items.time_scale or (torch.int32, [1] * videos, [1] * videos)
    scales = [(int(not still), 1)] * num_images + [*zip(*factors, strict=True), (1, 1)]
    return torch.tensor(scales, dtype=dtype, device="cpu").index_select(0, item)
