"""The next turn of requests on a warm cache: rows of a plan that go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.modality import UNKNOWN_MARKERS
from vecrope.core.search import search
from vecrope.inputs import Inputs
from vecrope.plans.build import plan_of_inputs
from vecrope.plans.group_plan import GroupPlan
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.rows import check_plan, concatenate_plans
from vecrope.plans.table import family_of
from vecrope.spec import MRopeSpec


def extend_plan(
    plan: RopeIndexPlan,
    input_ids: Tensor,
    spec: MRopeSpec,
    *,
    cu_seqlens: Tensor,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    mm_token_type_ids: Tensor | None = None,
    second_per_grid_ts: Tensor | Sequence[float] | None = None,
) -> GroupPlan:
    """Return the plan of requests that continue, as in the next turn of a conversation.

    The result is the plan of the whole prompts, of packed sequences, but only the new tokens and
    their grids have to be given: the tokens after the planned ones, including decoded tokens. The
    plan knows which markers are open at its end, so an open video continues. Values are checked,
    which synchronises on a device other than the CPU.

    Args:
        plan: of the requests so far, of a family of the shared rule.
        input_ids: (N,) the new tokens of all requests, one request after the other. A request may
            have none.
        spec: of the plan.
        cu_seqlens: (B + 1,) where the new tokens of each request begin, then N.
        image_grid_thw: (num_images, 3), of the new images.
        video_grid_thw: (num_videos, 3), of the new videos. No video may be partly in the plan.
        mm_token_type_ids: (N,) as for `vecrope.get_rope_index`. Needed if the plan was made from
            types or from placeholders, and the spec has a `marker_rule`.
        second_per_grid_ts: (num_videos,) likewise, in the precision of the plan's.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes or values that do not fit, another family, or one with a rule of its
            own, in which later positions depend on all earlier tokens.

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
    check_plan("plan", plan)
    types, seconds = mm_token_type_ids, second_per_grid_ts
    inputs = Inputs(input_ids, image_grid_thw, video_grid_thw, None, cu_seqlens, types, seconds)
    checks.check_metadata(inputs, spec)
    checks.check_has_values("cu_seqlens", cu_seqlens)
    if family_of(spec) != plan.family:
        raise ValueError(f"spec must be that of the plan, {plan.family}, got {family_of(spec)}")
    if not isinstance(plan, GroupPlan):
        raise ValueError(
            f"a plan of {plan.family} cannot be extended: {spec.model_type} has a rule of its own, "
            "by which what is new depends on all the tokens before; plan the whole prompts"
        )
    if cu_seqlens.shape[0] != len(plan) + 1:
        raise ValueError(
            f"cu_seqlens must have shape ({len(plan) + 1},), a sequence for each row of the plan, "
            f"got {tuple(cu_seqlens.shape)}"
        )
    checks.check_cu_seqlens(cu_seqlens, input_ids.shape[0])
    if spec.marker_rule != "none" and types is None:
        inputs = inputs._replace(open_markers=_known_markers(plan))
    own = plan_of_inputs(inputs, spec, validate=True)
    assert isinstance(own, GroupPlan)
    return _behind(plan, own)


def _known_markers(plan: GroupPlan) -> Tensor | None:
    """Return (B,) the markers that are open behind the rows of a plan; None: none are."""
    markers = plan.rows[:, 4]
    for row in (markers == UNKNOWN_MARKERS).nonzero()[:1, 0].tolist():
        raise ValueError(
            f"mm_token_type_ids must be given: row {row} of the plan was made of types or of "
            "placeholders, without the markers by which the spec tells videos"
        )
    return markers if bool(markers.any()) else None


def _behind(plan: GroupPlan, own: GroupPlan) -> GroupPlan:
    """Return the plan whose rows are those of one, and behind each the same one of another."""
    start, length, following, delta, _ = plan.rows.unbind(1)
    last = search(plan._entry_starts, start + length - 1) - 1
    at, tokens, _, behind, *_ = plan.entries[last].unbind(1)
    position = torch.where(length > 0, behind + start + length - at - tokens, 0)
    entries = own.entries.clone()
    shift = position[search(own.rows[:, 0].contiguous(), own._entry_starts) - 1]
    entries[:, 2:4] += shift.unsqueeze(1).to(entries.dtype)
    joined = concatenate_plans([plan, replace(own, entries=entries, dtype=plan.dtype)])
    order = torch.arange(2 * len(plan), device=plan.device).view(2, -1).t().flatten()
    both = joined._select(order)
    _, own_length, own_following, own_delta, open_markers = own.rows.unbind(1)
    # A block can reach further than it moves the running position.
    reached = torch.maximum(following, own_following + position)
    measured = following - delta + own_following - own_delta
    rows = both.rows[::2, 0], length + own_length, reached, reached - measured, open_markers
    return replace(both, rows=torch.stack(rows, 1))
