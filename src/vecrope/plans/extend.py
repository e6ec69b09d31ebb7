"""The next turn of requests on a warm cache: rows of a plan that go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope import checks
from vecrope.core.search import search, spread
from vecrope.inputs import Inputs
from vecrope.plans.build import plan_of_inputs
from vecrope.plans.group_plan import GroupPlan
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.rows import concatenate_plans, select_rows
from vecrope.plans.table import family_of
from vecrope.spec import MRopeSpec


def extend_plan(
    plan: RopeIndexPlan,
    input_ids: Tensor,
    spec: MRopeSpec,
    *,
    cu_seqlens: Tensor,
    previous_ids: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    mm_token_type_ids: Tensor | None = None,
    second_per_grid_ts: Tensor | Sequence[float] | None = None,
) -> GroupPlan:
    """Return the plan of requests that go on, as in the next turn of a conversation.

    It is the plan of the whole prompts, of which only what is new is given: the tokens behind those
    that are planned, decoded ones included, and their grids. Values are checked and read, for which
    it waits on a device other than the CPU.

    Args:
        plan: of the requests so far, of a family of the shared rule.
        input_ids: (N,) the new tokens of all requests, one after the other; none may be new.
        spec: of the plan.
        cu_seqlens: (B + 1,) where those of each request begin, then N.
        previous_ids: (plan.num_tokens,) the tokens that are planned, row after row, whose markers
            say whether a video goes on. Needed where the spec has a `marker_rule` and no types are
            given.
        image_grid_thw: (num_images, 3), of the new images.
        video_grid_thw: (num_videos, 3), of the new videos; no video lies on both sides of a cut.
        mm_token_type_ids: (N,) as for `vecrope.get_rope_index`.
        second_per_grid_ts: (num_videos,) likewise, in the precision of the plan's.

    Returns:
        The plan, of packed sequences.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes or values that do not fit, another family, or one of its own rule.

    Example:
        >>> import torch, vecrope
        >>> spec = vecrope.MRopeSpec.for_model("qwen2_vl", convention="transformers")
        >>> plan = vecrope.plan_rope_index(torch.tensor([[7, 8, 9]]), spec)
        >>> longer = vecrope.extend_plan(
        ...     plan, torch.tensor([spec.image_token_id] * 2 + [8]), spec,
        ...     cu_seqlens=torch.tensor([0, 3]), image_grid_thw=torch.tensor([[1, 2, 4]]),
        ... )
        >>> longer.position_ids()[2]
        tensor([0, 1, 2, 3, 4, 5])
    """
    types, seconds = mm_token_type_ids, second_per_grid_ts
    inputs = Inputs(input_ids, image_grid_thw, video_grid_thw, None, cu_seqlens, types, seconds)
    checks.check_metadata(inputs, spec)
    if not isinstance(plan, GroupPlan):
        raise ValueError(f"a plan of {spec.model_type} cannot be extended: plan the whole prompts")
    if family_of(spec) != plan.family:
        raise ValueError(f"spec must be that of the plan, {plan.family}, got {family_of(spec)}")
    if cu_seqlens.shape[0] != len(plan) + 1:
        raise ValueError(
            f"cu_seqlens must have shape ({len(plan) + 1},), a sequence for each row of the plan, "
            f"got {tuple(cu_seqlens.shape)}"
        )
    checks.check_cu_seqlens(cu_seqlens, input_ids.shape[0])
    if spec.marker_rule == "none" or types is not None:
        own = plan_of_inputs(inputs, spec, validate=True)
    else:
        own = _plan_behind_markers(plan, previous_ids, inputs, spec)
    assert isinstance(own, GroupPlan)
    return _behind(plan, own)


def _plan_behind_markers(
    plan: GroupPlan, previous_ids: Tensor | None, inputs: Inputs, spec: MRopeSpec
) -> GroupPlan:
    """Return the plan of new tokens as if the markers so far stood before those of each row."""
    if previous_ids is None:
        raise ValueError(
            f"previous_ids must be given for {plan.family}, whose markers tell videos, got None"
        )
    checks.check_integral("previous_ids", previous_ids)
    if previous_ids.shape != (plan.num_tokens,):
        raise ValueError(
            f"previous_ids must have shape ({plan.num_tokens},), the tokens of the plan, "
            f"got {tuple(previous_ids.shape)}"
        )
    begins, (ids, bounds) = plan.row_bounds, (inputs.input_ids, inputs.cu_seqlens)
    assert bounds is not None
    index = torch.arange(plan.num_tokens, device=plan.device)
    row = spread(begins.diff(), plan.num_tokens)
    told: Tensor
    if spec.marker_rule == "adjacent":
        told = index.eq(begins[row + 1] - 1)
    else:
        assert spec.video_start_token_id is not None
        assert spec.video_end_token_id is not None
        told = previous_ids.eq(spec.video_start_token_id)
        told |= previous_ids.eq(spec.video_end_token_id)
        told &= index >= plan._masked_ends()[search(plan._entry_starts, index) - 1]
    markers = torch.zeros_like(begins[1:]).index_add_(0, row, told.long())
    before = pad(markers.cumsum(0), (1, 0))
    bounds = bounds.to(plan.device).long()
    places = torch.arange(ids.shape[0], device=plan.device)
    places += before[1:][spread(bounds.diff(), ids.shape[0])]
    is_new = torch.zeros(ids.shape[0] + int(before[-1]), dtype=torch.bool, device=plan.device)
    is_new[places] = True
    joined = torch.empty(is_new.shape, dtype=ids.dtype, device=plan.device)
    joined[is_new], joined[~is_new] = ids, previous_ids[told].to(ids.dtype)
    inputs = inputs._replace(input_ids=joined, cu_seqlens=bounds + before)
    own = plan_of_inputs(inputs, spec, validate=True)
    assert isinstance(own, GroupPlan)
    # The markers are text at the start of each row: without them all is earlier by their number.
    rows, entries = own.rows.clone(), own.entries.long()
    row = search(rows[:, 0], entries[:, 0]) - 1
    fewer = markers[row]
    cut = (rows[row, 0] + fewer - entries[:, 0]).clamp(min=0)
    entries[:, 0] += cut - before[1:][row]
    entries[:, 2] -= fewer
    entries[:, 3] += cut - fewer
    rows[:, 0] -= before[:-1]
    rows[:, 1:3] -= markers.unsqueeze(1)
    entries = entries.to(own.entries.dtype)
    return replace(own, rows=rows, entries=entries, num_tokens=ids.shape[0])


def _behind(plan: GroupPlan, own: GroupPlan) -> GroupPlan:
    """Return the plan whose rows are those of one, and behind each the same one of another."""
    start, length, following, delta = plan.rows.unbind(1)
    last = search(plan._entry_starts, start + length - 1) - 1
    at, tokens, _, behind, *_ = plan.entries[last].unbind(1)
    position = torch.where(length > 0, behind + start + length - at - tokens, 0)
    entries = own.entries.clone()
    shift = position[search(own.rows[:, 0].contiguous(), own._entry_starts) - 1]
    entries[:, 2:4] += shift.unsqueeze(1).to(entries.dtype)
    joined = concatenate_plans([plan, replace(own, entries=entries, dtype=plan.dtype)])
    order = torch.arange(2 * len(plan), device=plan.device).view(2, -1).t().flatten()
    both = select_rows(joined, order)
    _, own_length, own_following, own_delta = own.rows.unbind(1)
    # A block can reach further than it moves the running position.
    reached = torch.maximum(following, own_following + position)
    measured = following - delta + own_following - own_delta
    rows = (both.rows[::2, 0], length + own_length, reached, reached - measured)
    return replace(both, rows=torch.stack(rows, 1))
