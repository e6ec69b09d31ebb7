"""The plan of a batch whose groups were found: the eager form."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import sub

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.forms.eager.rope_index import Batch, ends_of_rows
from vecrope.plans.group_plan import GroupPlan
from vecrope.plans.table import WIDE_FROM, family_of
from vecrope.spec import MRopeSpec

# In the order of entries that begin at one token.
_ROW, _MASKED, _GROUP = range(3)


def plan_of_groups(
    batch: Batch,
    spec: MRopeSpec,
    time_scale: Tensor,
    dtype: torch.dtype,
    seq_len: int | None = None,
) -> GroupPlan:
    """Return the plan of a batch on the host's CPU.

    Args:
        batch: its rows, and what in them is not text.
        spec: of the shared rule.
        time_scale: (2, I) or (0, I), of the items.
        dtype: of the positions.
        seq_len: T, or None where the input is packed.
    """
    bounds, parts = batch
    lengths = map(sub, bounds[1:], bounds)
    rows = [*zip(bounds[:-1], lengths, *ends_of_rows(parts, bounds, spec), strict=True)]
    columns = [entry[:1] + entry[2:] for entry in sorted(_entries(batch, spec.padding_value))]
    table = torch.tensor(columns, dtype=torch.int64, device="cpu").view(-1, 8)
    scale = time_scale.new_empty((table.shape[0], 0))
    if time_scale.shape[0]:
        scale = pad(time_scale, (0, 1), value=1).t()[table[:, 7]]
    return GroupPlan(
        rows=torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, 4),
        num_tokens=bounds[-1],
        seq_len=seq_len,
        dtype=dtype,
        padding_value=spec.padding_value,
        family=family_of(spec),
        entries=table[:, :7].to(torch.int64 if bounds[-1] >= WIDE_FROM else torch.int32),
        time_scale=scale,
    )


def _entries(batch: Batch, padding_value: int) -> list[tuple[int, ...]]:
    """Return the entries of a plan, in no order.

    An entry is start, what it is, tokens, base, position behind it, height, width, tokens of its
    group before, and the item of its group.
    """
    bounds, parts = batch
    items, running = parts.items, parts.running(bounds)
    text = len(items.area)

    def positions(at: Sequence[int]) -> list[int]:
        """Return the running positions at tokens, each in its own row."""
        begins = (running[bisect_right(bounds, index) - 1] for index in at)
        return [*map(sub, parts.running(at), begins)]

    entries: list[tuple[int, ...]] = [
        (start, _ROW, 0, 0, 0, 1, 1, 0, text) for start in bounds[:-1]
    ]
    starts, stops = parts.masked
    for start, stop, behind in zip(starts, stops, positions(starts), strict=True):
        tokens = stop - start
        entries.append((start, _MASKED, tokens, padding_value, behind, 1, 1, -tokens, text))
    for start, stop, item, before, base in zip(
        parts.starts, parts.stops, parts.item, parts.before, positions(parts.starts), strict=True
    ):
        size = items.height[item], items.width[item]
        behind = base + items.advance[item]
        entries.append((start, _GROUP, stop - start, base, behind, *size, before, item))
    return entries
