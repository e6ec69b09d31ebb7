"""The plan of a batch of which every token's place is known, with a fixed number of entries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.locations import TokenLocations
from vecrope.core.modality import compact
from vecrope.core.search import search
from vecrope.plans.group_plan import GroupPlan
from vecrope.plans.plan import WIDE_FROM
from vecrope.spec import MRopeSpec


def plan_of_locations(
    tokens: TokenLocations, spec: MRopeSpec, capacity: int, dtype: torch.dtype
) -> tuple[GroupPlan, Tensor]:
    """Return the plan of a batch, of `capacity` entries, and how many it needs; reads no value.

    Args:
        tokens: of the batch.
        spec: of the shared rule.
        capacity: number of entries.
        dtype: of the positions.
    """
    stream, items = tokens.stream, tokens.items
    num_tokens, kept, row_bounds = stream.num_tokens, stream.kept, stream.row_bounds
    index_dtype = torch.int64 if num_tokens >= WIDE_FROM else torch.int32
    visual = tokens.visual
    begins = visual & (tokens.place == 0)
    if kept is not None:
        # A masked run begins behind what is not, and a part of a group behind a masked run.
        behind_masked = pad(~kept[:-1], (1, 0))
        begins |= torch.where(kept, visual & behind_masked, ~behind_masked)
    # A row without a token begins where the next does, or behind the last token.
    begins = pad(begins, (0, 1)).index_fill_(0, row_bounds.long(), True)[:-1]
    start, count = compact(begins, capacity, index_dtype)
    assert count is not None
    at = start.clamp(max=num_tokens - 1)
    in_group = visual[at]
    next_start = pad(start[1:], (0, 1), value=num_tokens)
    # What a row of text begins with has no token of its own.
    before = tokens.place[at].to(index_dtype)
    left = torch.where(in_group, tokens.group_tokens[at].to(index_dtype) - before, 0)
    end = torch.minimum(start + left, next_start)
    base = tokens.base[at].to(index_dtype)
    behind = torch.where(in_group, base + tokens.span[at].to(index_dtype), base)
    if kept is not None:
        masked = ~kept[at]
        num_kept = kept.cumsum(0)
        stop = search(num_kept, num_kept[at]).to(index_dtype)
        end = torch.where(masked, torch.minimum(stop, next_start), end)
        before = torch.where(masked, start - end, before)
        base = base.masked_fill(masked, spec.padding_value)
    size = tokens.height[at].to(index_dtype), tokens.width[at].to(index_dtype)
    scale = torch.empty((capacity, 0), device=start.device)
    plan = GroupPlan(
        row_bounds=row_bounds.to(index_dtype),
        next_positions=tokens.next_positions,
        rope_deltas=tokens.rope_deltas,
        num_tokens=num_tokens,
        seq_len=stream.shape[1] if len(stream.shape) == 2 else None,
        dtype=dtype,
        padding_value=spec.padding_value,
        starts=start,
        entries=torch.stack((end - start, base, behind, *size, before), 1),
        time_scale=scale if items.pace is None else items.pace[:, tokens.item[at]].t(),
    )
    return plan, count
