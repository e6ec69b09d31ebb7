"""The plan of a batch of which every token's place is known, with a fixed number of entries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.modality import compact
from vecrope.plans.concatenate import WIDE_FROM
from vecrope.plans.group_plan import GroupPlan
from vecrope.spec import MRopeSpec


class Locations(NamedTuple):
    """Where each of N tokens, at least one, stands."""

    in_group: Tensor  # (N,) bool: a token of an image or a video, not masked
    # (5, N), of the token's group: its tokens before this one, all its tokens, height and width of
    # a frame, in tokens, and by how much it moves the running position. Of a token in no group:
    # 0, 0, 1, 1 and 0.
    group: Tensor
    # (N,) the running position in the row behind the token's group, if in one, or behind the token.
    running: Tensor
    time_scale: Tensor  # (2, N) or (0, N), as in `GroupPlan`


def plan_of_locations(
    tokens: Locations,
    spec: MRopeSpec,
    capacity: int,
    *,
    row_bounds: Tensor,
    next_positions: Tensor,
    rope_deltas: Tensor,
    seq_len: int | None,
    dtype: torch.dtype,
    kept: Tensor | None,
) -> tuple[GroupPlan, Tensor]:
    """Return the plan of a batch, of `capacity` entries, and how many it needs; reads no value.

    Args:
        tokens: of the batch.
        spec: of the shared rule.
        capacity: number of entries.
        row_bounds: (B + 1,) where each row starts in the batch, then N.
        next_positions: (B,) of the plan.
        rope_deltas: (B, 1) of the plan.
        seq_len: T, or None where the input was packed.
        dtype: of the positions.
        kept: (N,) bool, True = token; None: every one is.
    """
    num_tokens = tokens.in_group.shape[0]
    index_dtype = torch.int64 if num_tokens >= WIDE_FROM else torch.int32
    begins = tokens.in_group & (tokens.group[0] == 0)
    if kept is not None:
        # A masked run begins behind what is not, and a part of a group behind a masked run.
        behind_masked = pad(~kept[:-1], (1, 0))
        begins |= torch.where(kept, tokens.in_group & behind_masked, ~behind_masked)
    # A row without a token begins where the next does, or behind the last token.
    begins = pad(begins, (0, 1)).index_fill_(0, row_bounds.long(), True)[:-1]
    start, count = compact(begins, capacity, index_dtype)
    at = start.clamp(max=num_tokens - 1)
    place, area, height, width, advance = tokens.group[:, at].to(index_dtype).unbind()
    running = tokens.running[at].to(index_dtype)
    in_group = tokens.in_group[at]
    next_start = pad(start[1:], (0, 1), value=num_tokens)
    end = torch.where(in_group, torch.minimum(start + area - place, next_start), start)
    base = running - advance
    if kept is None:
        # What a row of text begins with moves the running position itself.
        behind = torch.where(in_group, running, running - 1)
    else:
        masked = ~kept[at]
        num_kept = kept.cumsum(0, dtype=index_dtype)
        stop = torch.searchsorted(num_kept, num_kept[at], right=True).to(index_dtype)
        end = torch.where(masked, torch.minimum(stop, next_start), end)
        behind = torch.where(in_group | masked, running, running - 1)
        place = torch.where(masked, start - end, place)
        base = base.masked_fill(masked, spec.padding_value)
    plan = GroupPlan(
        row_bounds=row_bounds.to(index_dtype),
        next_positions=next_positions,
        rope_deltas=rope_deltas,
        num_tokens=num_tokens,
        seq_len=seq_len,
        dtype=dtype,
        padding_value=spec.padding_value,
        entries=torch.stack((start, end, base, behind, height, width, place)),
        time_scale=tokens.time_scale[:, at],
    )
    return plan, count
