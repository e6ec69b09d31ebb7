"""The plan of a batch of which every token's place is known: the static form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.items import Items
from vecrope.core.modality import UNKNOWN_MARKERS
from vecrope.core.search import compact, search
from vecrope.forms.static import TokenLocations, locate_inputs
from vecrope.plans.group_plan import GroupPlan
from vecrope.plans.table import fields_of, index_dtype
from vecrope.prepare import Prepared
from vecrope.spec import MRopeSpec


def plan_of_tokens(
    prepared: Prepared, spec: MRopeSpec, validate: bool, max_groups: int | None
) -> GroupPlan:
    """Return the plan of a batch, of `max_groups` entries or one a token.

    Reads no value, but with `validate` outside of a trace: what is wrong is named then, and without
    `max_groups` there are as many entries as it takes.
    """
    inputs, _, tracing, dtype = prepared
    reads = validate and not tracing
    tokens, fault = locate_inputs(inputs, spec, validate=validate)
    stream = tokens.stream
    capacity = stream.num_tokens if max_groups is None else max_groups
    entries, item, count = _entries(tokens, spec, capacity)
    if reads:
        if (number := int(count)) > capacity:
            raise ValueError(
                f"max_groups must be at least {number} for this input, got {max_groups}"
            )
        if max_groups is None:
            # A table has an entry, whether or not a token asks for it.
            in_use = max(number, 1)
            entries, item = entries[:in_use].clone(), item[:in_use]
    bounds = stream.row_bounds.long()
    ends, rope_deltas = tokens.ends_of_rows()
    of_rows = bounds[:-1], bounds.diff(), ends, rope_deltas.squeeze(1), _open_markers(tokens, spec)
    scale = _time_scale(tokens.items, spec, item)
    fields = fields_of(stream.shape, spec, dtype)
    plan = GroupPlan(torch.stack(of_rows, 1), entries, *fields, scale)
    if reads:
        return plan
    invalid = count > capacity
    return plan.invalidated(invalid if fault is None else invalid | fault)


def _entries(
    tokens: TokenLocations, spec: MRopeSpec, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `capacity` entries, the item of each, and how many there should be.

    An entry begins where a row does, a group, a masked run, or the part of a group behind one.
    """
    stream, visual = tokens.stream, tokens.visual
    num_tokens, kept = stream.num_tokens, stream.kept
    of_entries = index_dtype(num_tokens)
    if not num_tokens:
        # One that begins where the rows do.
        entries = torch.zeros((1, 7), dtype=of_entries, device=stream.row_bounds.device)
        entries[:, 4:6].fill_(1)
        return entries, entries[:, 0] + tokens.items.masked, entries[0, 0]
    begins = tokens.begins
    if kept is not None:
        behind_masked = pad(~kept[:-1], (1, 0))
        begins = begins | torch.where(kept, visual & behind_masked, ~behind_masked)
    # A row without a token begins where the next does, or behind the last token.
    begins = pad(begins, (0, 1)).index_fill_(0, stream.row_bounds.long(), True)[:-1]
    start, count = compact(begins, capacity, of_entries)
    at = start.clamp(max=num_tokens - 1)
    next_start = pad(start[1:], (0, 1), value=num_tokens)
    item, place, area, base, span, height, width = (
        values[at].to(of_entries)
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
        run = search(num_kept, num_kept[at]).to(of_entries) - start
        left = torch.where(masked, run, left)
        base = base.masked_fill(masked, spec.padding_value)
    size = torch.minimum(left, next_start - start)
    before = place if kept is None else torch.where(masked, -size, place)
    return torch.stack((start, size, base, behind, height, width, before), 1), item, count


def _time_scale(items: Items, spec: MRopeSpec, item: Tensor) -> Tensor:
    """Return `GroupPlan.time_scale` of the entries (E,) of items."""
    scale = items.time_scale
    if scale is None:
        return torch.empty((len(item), 0), dtype=torch.int32, device=item.device)
    if items.num_images == items.text or spec.video_time != "seconds":
        scale = scale.to(torch.int32)
    return scale[:, item].t()


def _open_markers(tokens: TokenLocations, spec: MRopeSpec) -> Tensor:
    """Return (B,) int64: the markers that are open at the end of each row."""
    stream, open_markers = tokens.stream, tokens.open_markers
    bounds = stream.row_bounds.long()
    if spec.marker_rule == "none" or stream.token_types is not None:
        value = 0 if spec.marker_rule == "none" else UNKNOWN_MARKERS
        return torch.full_like(bounds[1:], value)
    before = 0 if stream.open_markers is None else stream.open_markers
    if not stream.num_tokens:
        return torch.zeros_like(bounds[1:]) + before
    if open_markers is None:
        assert spec.vision_start_token_id is not None
        open_markers = stream.input_ids == spec.vision_start_token_id
        open_markers = open_markers if stream.kept is None else open_markers & stream.kept
    return torch.where(bounds.diff() == 0, before, open_markers[bounds[1:] - 1].long())
