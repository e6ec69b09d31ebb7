"""The plan of a batch whose groups were found: the eager form."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain, repeat
from operator import add, itemgetter, sub

import torch
from torch import Tensor

from vecrope.core.items import has_time_scale
from vecrope.forms.eager.groups import Parts
from vecrope.forms.eager.rope_index import Batch, ends_of_rows
from vecrope.plans.group_plan import GroupPlan
from vecrope.plans.table import WIDE_FROM, fields_of, host_table
from vecrope.spec import MRopeSpec


def plan_of_groups(
    batch: Batch, spec: MRopeSpec, dtype: torch.dtype, shape: Sequence[int] | None = None
) -> GroupPlan:
    """Return the plan of a batch on the host's CPU; `shape` is that of the input, None: (N,)."""
    bounds, parts, open_markers = batch
    items, item, starts = parts.items, parts.item, parts.starts
    begins, base = bounds[:-1], parts.bases()
    lengths, (running, *ends) = map(sub, bounds[1:], begins), ends_of_rows(parts, bounds, spec)
    rows = [*zip(begins, lengths, *ends, open_markers, strict=True)]
    if len(rows) > 1:
        base = _in_rows(base, starts, running, bounds)
    tokens, advance = map(sub, parts.stops, starts), map(items.advance.__getitem__, item)
    height, width = map(items.height.__getitem__, item), map(items.width.__getitem__, item)
    behind = map(add, base, advance)
    columns = starts, tokens, base, behind, height, width, parts.before
    entries: list[tuple[int, ...]] = [(begin, 0, 0, 0, 1, 1, 0) for begin in begins]
    entries += zip(*columns, strict=True)
    if len(rows) > 1 or parts.masked[0]:
        # Of what begins at one token a row's bound comes first.
        masked, behind_masked = parts.masked, parts.running(parts.masked[0])
        behind_masked = _in_rows(behind_masked, masked[0], running, bounds)
        entries += (
            (start, stop - start, spec.padding_value, position, 1, 1, start - stop)
            for start, stop, position in zip(*masked, behind_masked, strict=True)
        )
        entries.sort(key=itemgetter(0))
    table = host_table("q" if bounds[-1] >= WIDE_FROM else "i", entries)
    timed = has_time_scale(spec)
    scale = _time_scale(parts, entries, spec) if timed else table.new_empty((len(entries), 0))
    fields = fields_of(shape or bounds[-1:], spec, dtype)
    return GroupPlan(host_table("q", rows), table, *fields, scale)


def _in_rows(
    positions: Sequence[int], at: Sequence[int], running: list[int], bounds: list[int]
) -> list[int]:
    """Return the positions of ascending tokens, each in its own row.

    `running` are the running positions at the rows' `bounds`.
    """
    before = [bisect_left(at, bound) for bound in bounds]
    of_rows = map(repeat, running, map(sub, before[1:], before))
    return [*map(sub, positions, chain.from_iterable(of_rows))]


def _time_scale(parts: Parts, entries: Sequence[Sequence[int]], spec: MRopeSpec) -> Tensor:
    """Return `GroupPlan.time_scale`; where no group starts, the factors change nothing."""
    items, num_images = parts.items, parts.items.num_images
    still = spec.image_time == "none" and max(items.depth[:num_images], default=1) > 1
    num_videos = len(items.depth) - num_images
    dtype, *factors = items.time_scale or (torch.int32, [1] * num_videos, [1] * num_videos)
    of_items = [*[(int(not still), 1)] * num_images, *zip(*factors, strict=True)]
    of_groups = dict(zip(parts.starts, map(of_items.__getitem__, parts.item), strict=True))
    of_entries = [of_groups.get(entry[0], (1, 1)) for entry in entries]
    return host_table("f" if dtype == torch.float32 else "d", of_entries).to(dtype)
