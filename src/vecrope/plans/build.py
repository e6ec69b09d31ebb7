"""The plan of a batch, from its tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core import faults
from vecrope.core.items import make_items, pace_of
from vecrope.core.stream import make_stream
from vecrope.families.rules import GlmImage
from vecrope.forms.eager.parts import Parts
from vecrope.forms.eager.rope_index import find_groups
from vecrope.forms.static import locate
from vecrope.inputs import Inputs
from vecrope.own_rules.dispatch import own_rope_index
from vecrope.own_rules.glm_image.decode import tail_of
from vecrope.own_rules.glm_image.prompt import read_markers
from vecrope.plans.entries import GroupParts, HostGroup, plan_of_few_groups, plan_of_groups
from vecrope.plans.line_plan import LinePlan, no_images
from vecrope.plans.lines import Lines, lines_of
from vecrope.plans.locations import plan_of_locations
from vecrope.plans.plan import WIDE_FROM, RopeIndexPlan
from vecrope.prepare import Prepared
from vecrope.spec import MRopeSpec

# Up to so many groups and rows, sums of numbers on the host are faster than tensor operators.
FEW = 512


def build_plan(
    prepared: Prepared, spec: MRopeSpec, validate: bool, max_groups: int | None
) -> RopeIndexPlan:
    """Return the plan of a batch."""
    inputs, exact, _, dtype = prepared
    if spec.own_rule is not None:
        return _plan_of_lines(prepared, spec, validate)
    found = find_groups(inputs, spec) if exact and inputs.input_ids.numel() else None
    if found is None:
        return _plan_of_tokens(prepared, spec, validate, max_groups)
    bounds, parts = found
    scale, mask = _time_scale(inputs, spec), inputs.attention_mask
    seq_len = inputs.input_ids.shape[1] if inputs.cu_seqlens is None else None
    if mask is None and len(bounds) + len(parts.starts) <= FEW:
        return plan_of_few_groups(
            _groups_on_host(parts), scale, spec, row_bounds=bounds, seq_len=seq_len, dtype=dtype
        )
    return plan_of_groups(
        _parts_of(parts, scale),
        spec,
        row_bounds=torch.tensor(bounds, device="cpu"),
        num_tokens=bounds[-1],
        seq_len=seq_len,
        dtype=dtype,
        kept=None if mask is None else mask.to("cpu", torch.bool).reshape(-1),
    )


def _time_scale(inputs: Inputs, spec: MRopeSpec) -> Tensor:
    """Return (2, I) or (0, I), as `GroupPlan` has it, of the grids of images, then of videos."""
    images, videos = inputs.image_grid_thw, inputs.video_grid_thw
    num_images, num_videos = (0 if grids is None else len(grids) for grids in (images, videos))
    scale = pace_of(num_images, num_videos, spec, inputs.second_per_grid_ts, torch.device("cpu"))
    return torch.empty((0, num_images + num_videos), device="cpu") if scale is None else scale


def _groups_on_host(parts: Parts) -> list[HostGroup]:
    """Return the groups of a batch that masks nothing, in the order of the stream."""
    items, numbers = parts.items, parts.item
    columns = items.area, items.height, items.width, items.advance, items.extent
    sizes = (map(column.__getitem__, numbers) for column in columns)
    return [*zip(parts.starts, numbers, *sizes, strict=True)]


def _parts_of(parts: Parts, scale: Tensor) -> GroupParts:
    """Return the groups of a batch, each in one part, in the order of the stream."""
    items = parts.items
    numbers = zip(parts.starts, parts.item, parts.before, strict=True)
    groups = [(start, item) for start, item, before in numbers if item >= 0 and not before]
    start, item = torch.tensor(groups, dtype=torch.int64, device="cpu").view(-1, 2).unbind(1)
    columns = [items.area, [0] * len(items.area), items.height, items.width, items.advance]
    columns.append(items.extent)
    table = torch.tensor(columns, dtype=torch.int64, device="cpu")[:, item]
    return GroupParts._make((start, *table, scale[:, item]))


def _plan_of_tokens(
    prepared: Prepared, spec: MRopeSpec, validate: bool, max_groups: int | None
) -> RopeIndexPlan:
    """Return the plan of a batch from where each token stands; checked, it says what is wrong."""
    inputs, exact, tracing, dtype = prepared
    checked = validate and not tracing
    device, seconds = inputs.input_ids.device, inputs.second_per_grid_ts
    no_grid = torch.empty((0, 3), dtype=torch.int64, device=device)
    images = no_grid if inputs.image_grid_thw is None else inputs.image_grid_thw
    videos = no_grid if inputs.video_grid_thw is None else inputs.video_grid_thw
    if checked:
        faults.check_grids(images, videos, spec, lenient=inputs.lenient)
        faults.check_seconds(seconds, videos, spec)
    stream = make_stream(
        inputs.input_ids,
        inputs.attention_mask,
        inputs.cu_seqlens,
        inputs.mm_token_type_ids,
        exact=exact,
    )
    items = make_items(images, videos, spec, stream.index_dtype, seconds)
    if stream.num_tokens == 0:
        if checked and not inputs.lenient:
            faults.check_none_left_over(items)
        none = torch.empty((7, 0), dtype=torch.int64, device=device)
        scale = torch.empty((0, 0), device=device) if items.pace is None else items.pace[:, :0]
        return plan_of_groups(
            GroupParts._make((*none, scale)),
            spec,
            row_bounds=stream.row_bounds.long(),
            num_tokens=0,
            seq_len=inputs.input_ids.shape[1] if inputs.cu_seqlens is None else None,
            dtype=dtype,
        )
    tokens = locate(stream, spec, items)
    capacity = stream.num_tokens if max_groups is None else max_groups
    plan, count = plan_of_locations(tokens, spec, capacity, dtype)
    invalid = count > capacity
    if validate:
        fault = faults.layout_fault(tokens, spec, lenient=inputs.lenient)
        if checked and bool(fault):
            faults.raise_layout_fault(tokens, images, videos, spec, lenient=inputs.lenient)
        if checked and bool(invalid):
            raise ValueError(
                f"max_groups must be at least {int(count)} for this input, got {max_groups}"
            )
        invalid = invalid | fault
    return plan.voided(invalid)


def _plan_of_lines(prepared: Prepared, spec: MRopeSpec, validate: bool) -> RopeIndexPlan:
    """Return the plan of a family with a rule of its own, from its positions."""
    inputs, exact, tracing, _ = prepared
    position_ids, rope_deltas = own_rope_index(inputs, spec, validate=validate)
    stream = make_stream(
        inputs.input_ids, inputs.attention_mask, inputs.cu_seqlens, None, exact=exact
    )
    positions, bounds = position_ids.flatten(1), stream.row_bounds
    lengths = bounds.diff()
    if spec.delta_length == "valid" and stream.kept is not None:
        lengths = pad(stream.kept.cumsum(0), (1, 0))[bounds].diff()
    if stream.num_tokens:
        lines = lines_of(positions, stream.kept, bounds, exact=exact)
    else:
        empty = positions.new_zeros((positions.shape[0], 1))
        slopes = torch.ones((positions.shape[0] + 1, 1), dtype=torch.int8, device=empty.device)
        lines = Lines(bounds.new_zeros(1), empty, slopes)
    index_dtype = torch.int64 if stream.num_tokens >= WIDE_FROM else torch.int32
    tail, misfit = no_images(positions.device), None
    if isinstance(spec.own_rule, GlmImage):
        reading = read_markers(inputs, spec, validate=False)
        tail, misfit = tail_of(reading, spec), reading.misfit
    plan = LinePlan(
        row_bounds=bounds.to(index_dtype),
        next_positions=rope_deltas.view(-1) + lengths,
        rope_deltas=rope_deltas,
        num_tokens=stream.num_tokens,
        seq_len=inputs.input_ids.shape[1] if inputs.cu_seqlens is None else None,
        dtype=position_ids.dtype,
        padding_value=spec.padding_value,
        starts=lines.starts.to(index_dtype),
        bases=lines.bases if lines.bases.is_floating_point() else lines.bases.to(index_dtype),
        slopes=lines.slopes,
        generated=tail.images,
        generated_rows=tail.rows,
    )
    return plan.voided(misfit) if misfit is not None and validate and tracing else plan
