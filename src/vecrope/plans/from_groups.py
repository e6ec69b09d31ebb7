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
    """Return the plan of a batch on the host's CPU; `shape` is that of the input, None: (N,)."""
    bounds, parts, open_markers = batch
    items, item, (masked, stops) = parts.items, parts.item, parts.masked
    begins, running = bounds[:-1], parts.running(bounds)

    def positions(bases: list[int], at: Sequence[int]) -> Iterable[int]:
        """Return the positions of ascending tokens, each in its own row."""
        before = [bisect_left(at, bound) for bound in bounds]
        in_rows = map(repeat, running, map(sub, before[1:], before))
        return map(sub, bases, chain.from_iterable(in_rows))

    # Where videos are spaced in time an entry has the item of its group behind all else.
    timed = has_time_scale(spec)
    zero, one, text = repeat(0), repeat(1), [repeat(len(items.area))] * timed
    # Of what begins at one token a row's bound comes first, and then a masked run.
    entries = [*zip(begins, zero, zero, zero, one, one, zero, *text, strict=False)]
    if masked:
        sizes, padding = [*map(sub, stops, masked)], repeat(spec.padding_value)
        after = positions(parts.running(masked), masked)
        of_runs = masked, sizes, padding, after, one, one, map(neg, sizes), *text
        entries += zip(*of_runs, strict=False)
    tokens = map(sub, parts.stops, parts.starts)
    base = [*positions(parts.bases(), parts.starts)]
    advance, *sides = (
        map(of_items.__getitem__, item) for of_items in (items.advance, items.height, items.width)
    )
    behind = map(add, base, advance)
    columns = parts.starts, tokens, base, behind, *sides, parts.before, *[item] * timed
    entries += zip(*columns, strict=True)
    entries.sort(key=itemgetter(0))
    table = host_table("q" if bounds[-1] >= WIDE_FROM else "i", entries)
    lengths = map(sub, bounds[1:], begins)
    rows = zip(begins, lengths, *ends_of_rows(parts, bounds, spec), open_markers, strict=True)
    scale = _time_scale(items, entries, spec) if timed else table[:, 7:]
    table = table[:, :7].contiguous() if timed else table
    fields = fields_of(shape or bounds[-1:], spec, dtype)
    return GroupPlan(host_table("q", [*rows]), table, time_scale=scale, **fields)


def _time_scale(items: Items, entries: Sequence[Sequence[int]], spec: MRopeSpec) -> Tensor:
    """Return `GroupPlan.time_scale` of entries of which the last number is an item."""
    num_images, ones = items.num_images, [1.0] * len(items.area)
    still = spec.image_time == "none" and max(items.depth[:num_images], default=1) > 1
    if items.time_scale is None and not still:
        return torch.ones((len(entries), 2), dtype=torch.int32, device="cpu")
    dtype, *of_videos = items.time_scale or (torch.int32, ones, ones)
    of_images = [(float(not still), 1.0)] * num_images
    scales = [*of_images, *zip(*of_videos, strict=True), (1.0, 1.0)]
    return host_table("d", [*map(scales.__getitem__, map(itemgetter(7), entries))]).to(dtype)
