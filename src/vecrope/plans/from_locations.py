"""The plan of a batch of which every token's place is known: the static form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.locations import TokenLocations
from vecrope.core.modality import UNKNOWN_MARKERS, compact
from vecrope.core.search import search
from vecrope.plans.group_plan import GroupPlan
from vecrope.plans.table import WIDE_FROM, fields_of
from vecrope.spec import MRopeSpec


def plan_of_locations(
    tokens: TokenLocations, spec: MRopeSpec, capacity: int, time_scale: Tensor, dtype: torch.dtype
) -> tuple[GroupPlan, Tensor]:
    """Return the plan of a batch, of `capacity` entries, and how many it needs; reads no value.

    An entry begins where a row does, a group, a masked run, or the part of a group behind one.

    Args:
        tokens: of the batch, at least one.
        spec: of the shared rule.
        capacity: number of entries.
        time_scale: (2, I + 2) or (0, I + 2), of the items.
        dtype: of the positions.
    """
    stream = tokens.stream
    num_tokens, kept, bounds = stream.num_tokens, stream.kept, stream.row_bounds.long()
    index_dtype = torch.int64 if num_tokens >= WIDE_FROM else torch.int32
    visual = tokens.visual
    begins = visual & (tokens.place == 0)
    if kept is not None:
        behind_masked = pad(~kept[:-1], (1, 0))
        begins |= torch.where(kept, visual & behind_masked, ~behind_masked)
    # A row without a token begins where the next does, or behind the last token.
    begins = pad(begins, (0, 1)).index_fill_(0, bounds, True)[:-1]
    start, count = compact(begins, capacity, index_dtype)
    assert count is not None
    at = start.clamp(max=num_tokens - 1)
    next_start = pad(start[1:], (0, 1), value=num_tokens)
    item, place, area, base, span, height, width = (
        values[at].to(index_dtype)
        for values in (
            *(tokens.item, tokens.place, tokens.group_tokens, tokens.base),
            *(tokens.span, tokens.height, tokens.width),
        )
    )
    # What a row of text begins with has no token of its own.
    in_group = visual[at]
    left = torch.where(in_group, area - place, 0)
    behind = torch.where(in_group, base + span, base)
    if kept is not None:
        masked, num_kept = ~kept[at], kept.cumsum(0)
        run = search(num_kept, num_kept[at]).to(index_dtype) - start
        left = torch.where(masked, run, left)
        base = base.masked_fill(masked, spec.padding_value)
    number = torch.minimum(left, next_start - start)
    before = place if kept is None else torch.where(masked, -number, place)
    ends, rope_deltas = tokens.ends_of_rows()
    rows = torch.stack(
        (
            *(bounds[:-1], bounds.diff(), ends, rope_deltas.squeeze(1)),
            _open_markers(tokens, spec, bounds),
        ),
        1,
    )
    plan = GroupPlan(
        rows=rows,
        entries=torch.stack((start, number, base, behind, height, width, before), 1),
        time_scale=time_scale[:, item].t(),
        **fields_of(stream.shape, spec, dtype),
    )
    return plan, count


def _open_markers(tokens: TokenLocations, spec: MRopeSpec, bounds: Tensor) -> Tensor:
    """Return (B,) the markers that are open at the end of each row."""
    if spec.marker_rule == "none":
        return torch.zeros_like(bounds[1:])
    if tokens.stream.token_types is not None:
        return torch.full_like(bounds[1:], UNKNOWN_MARKERS)
    stream, open_markers = tokens.stream, tokens.open_markers
    if open_markers is None:
        assert spec.vision_start_token_id is not None
        open_markers = stream.input_ids == spec.vision_start_token_id
        open_markers = open_markers if stream.kept is None else open_markers & stream.kept
    before = 0 if stream.open_markers is None else stream.open_markers
    return torch.where(bounds.diff() == 0, before, open_markers[bounds[1:] - 1].long())
