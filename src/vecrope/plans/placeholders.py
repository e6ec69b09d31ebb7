"""The plan of prompts whose placeholders are known by their offsets; no token is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope import checks
from vecrope.core.modality import IMAGE, VIDEO
from vecrope.forms.eager.rope_index import Batch, groups_of_runs, positions_of_runs
from vecrope.inputs import Inputs
from vecrope.plans.build import plan_of_inputs
from vecrope.plans.from_groups import plan_of_groups
from vecrope.plans.plan import RopeIndexPlan
from vecrope.spec import MRopeSpec


class Placeholders(NamedTuple):
    """Prompts by their runs of placeholders; the arguments of `plan_from_placeholders`."""

    counts: list[int]
    offsets: Tensor
    lengths: Tensor
    modalities: Tensor
    rows: Tensor | None
    image_grid_thw: Tensor | None
    video_grid_thw: Tensor | None
    seconds: Tensor | Sequence[float] | None
    dtype: torch.dtype


def plan_from_placeholders(
    num_tokens: int | Sequence[int],
    spec: MRopeSpec,
    *,
    offsets: Tensor,
    lengths: Tensor,
    modalities: Tensor,
    rows: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Tensor | Sequence[float] | None = None,
    dtype: torch.dtype = torch.int64,
    validate: bool = True,
) -> RopeIndexPlan:
    """Return the plan of requests from the runs of placeholders in their prompts.

    A run is a stretch of consecutive placeholders of one image or one video: an image, a video that
    is one block, or a frame of a video with text between its frames. The plan is the one that
    `plan_rope_index` makes from packed `input_ids` with these runs.

    Args:
        num_tokens: tokens of each prompt, B numbers; or one, for one prompt.
        spec: of a family of the shared rule.
        offsets: (R,) integers, index in its prompt of each run's first token; ascending in each
            prompt, prompt after prompt.
        lengths: (R,) integers, tokens of each run.
        modalities: (R,) integers, 1 for an image and 2 for a video.
        rows: (R,) integers, the prompt of each run, ascending; None: there is one prompt.
        image_grid_thw: (num_images, 3) integers in patches, in the order of the runs.
        video_grid_thw: (num_videos, 3) likewise.
        second_per_grid_ts: (num_videos,) as for `get_rope_index`.
        dtype: of the positions, int64 or int32.
        validate: check the values, which synchronises if they are not on a CPU. With False no value
            on another device is read, but `num_tokens` is copied from the host. With False, and
            under tracing, a run with several separate frames may give a plan of only -1: pass one
            run per frame.

    Returns:
        The plan, of packed sequences, on the device of `offsets`.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes or values that do not fit, or a family of its own rule.

    Example:
        >>> import torch, vecrope
        >>> spec = vecrope.MRopeSpec.for_model("qwen2_vl", convention="vllm")
        >>> plan = vecrope.plan_from_placeholders(
        ...     5, spec, offsets=torch.tensor([1]), lengths=torch.tensor([2]),
        ...     modalities=torch.tensor([1]), image_grid_thw=torch.tensor([[1, 2, 4]]),
        ... )
        >>> plan.position_ids()
        tensor([[0, 1, 1, 3, 4],
                [0, 1, 1, 3, 4],
                [0, 1, 2, 3, 4]])
    """
    prompts = Placeholders(
        [num_tokens] if isinstance(num_tokens, int) else list(num_tokens),
        *(offsets, lengths, modalities, rows),
        *(image_grid_thw, video_grid_thw, second_per_grid_ts, dtype),
    )
    _check_metadata(prompts, spec)
    found = _groups(prompts, spec)
    if found is None:
        return _plan_by_types(prompts, spec, validate=validate)
    return plan_of_groups(found, spec, dtype)


def get_rope_index_from_placeholders(
    num_tokens: int | Sequence[int],
    spec: MRopeSpec,
    *,
    offsets: Tensor,
    lengths: Tensor,
    modalities: Tensor,
    rows: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Tensor | Sequence[float] | None = None,
    dtype: torch.dtype = torch.int64,
    validate: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the position ids and deltas of requests from the runs of placeholders in them.

    They are those of the plan that `plan_from_placeholders` makes from the same arguments.

    Returns:
        `position_ids` (3, N) in `dtype`, one prompt after the other, and `rope_deltas` (B, 1)
        int64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes or values that do not fit, or a family of its own rule.
    """
    prompts = Placeholders(
        [num_tokens] if isinstance(num_tokens, int) else list(num_tokens),
        *(offsets, lengths, modalities, rows),
        *(image_grid_thw, video_grid_thw, second_per_grid_ts, dtype),
    )
    _check_metadata(prompts, spec)
    found = _groups(prompts, spec)
    if found is not None and any(prompts.counts):
        return positions_of_runs(found, spec, dtype)
    plan = _plan_by_types(prompts, spec, validate=validate)
    return plan.position_ids(), plan.rope_deltas


def _groups(prompts: Placeholders, spec: MRopeSpec) -> Batch | None:
    """Return the groups on the host, or None where the runs are not just these."""
    runs = prompts.offsets, prompts.lengths, prompts.modalities, prompts.rows
    if not prompts.offsets.is_cpu or torch.compiler.is_compiling():
        return None
    grids = prompts.image_grid_thw, prompts.video_grid_thw
    return groups_of_runs(prompts.counts, spec, runs, grids, prompts.seconds)


def _plan_by_types(prompts: Placeholders, spec: MRopeSpec, *, validate: bool) -> RopeIndexPlan:
    """Return the plan of tokens that have just a type, which names what is wrong, too."""
    counts, offsets, lengths, modalities, rows, images, videos, seconds, dtype = prompts
    device, tracing = offsets.device, torch.compiler.is_compiling()
    rows = torch.zeros_like(offsets) if rows is None else rows
    if validate and not tracing:
        _check_values(prompts, rows)
    num_tokens = sum(counts)
    bounds = torch.tensor([0, *counts], dtype=torch.int64, device=device).cumsum(0)
    begin = bounds[rows.long()] + offsets
    change = torch.zeros(num_tokens + 1, dtype=dtype, device=device)
    for edge, kind in ((begin, modalities), (begin + lengths, -modalities)):
        change.index_add_(0, edge.clamp(0, num_tokens), kind.to(dtype))
    types = change.cumsum(0, dtype=dtype)[:-1]
    capacity = None
    if tracing or not offsets.is_cpu:
        num_items = sum(0 if grids is None else len(grids) for grids in (images, videos))
        capacity = len(offsets) + num_items + len(counts)
    inputs = Inputs(types, images, videos, None, bounds, types, seconds)
    plan = plan_of_inputs(inputs, spec, validate=validate, max_groups=capacity)
    return replace(plan, dtype=dtype)


def _check_metadata(prompts: Placeholders, spec: MRopeSpec) -> None:
    """Check types, shapes and dtypes of runs of placeholders and of grids."""
    counts, offsets, lengths, modalities, rows, images, videos, seconds, dtype = prompts
    checks.check_spec(spec)
    if spec.own_rule is not None:
        raise ValueError(
            f"{spec.model_type} has no plan from placeholders: it is numbered by a rule of its own"
        )
    if dtype not in (torch.int64, torch.int32):
        raise TypeError(f"dtype must be torch.int64 or torch.int32, got {dtype}")
    for count in counts:
        checks.check_int("num_tokens", count, 0)
    if not counts:
        raise ValueError("num_tokens must hold a number for each prompt, got none")
    given = {"offsets": offsets, "lengths": lengths, "modalities": modalities}
    if rows is not None:
        given["rows"] = rows
    elif len(counts) > 1:
        raise ValueError(f"rows must be given for {len(counts)} prompts, got None")
    for name, values in given.items():
        checks.check_tensor(name, values)
        if values.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} must be int64 or int32, got {values.dtype}")
        if values.dim() != 1 or values.shape != offsets.shape:
            raise ValueError(
                f"{name} must have shape (R,) as offsets {tuple(offsets.shape)}, "
                f"got {tuple(values.shape)}"
            )
    checks.check_grid_shapes(images, videos)
    num_videos = 0 if videos is None else videos.shape[0]
    checks.check_seconds_argument(seconds, num_videos, spec)


def _check_values(prompts: Placeholders, rows: Tensor) -> None:
    """Check that the runs lie in their prompts, one behind the other; synchronises."""
    counts, offsets, lengths, modalities, *_ = prompts
    if not offsets.shape[0]:
        return
    ends = offsets + lengths
    before = pad(torch.where(rows[1:] == rows[:-1], ends[:-1], 0), (1, 0))
    strange = (rows < 0) | (rows >= len(counts)) | pad(rows[1:] < rows[:-1], (1, 0))
    for at in strange.nonzero()[:1, 0].tolist():
        raise ValueError(
            f"rows must ascend from 0 to {len(counts) - 1}, got {int(rows[at])} at run {at}"
        )
    limit = torch.tensor(counts, device=rows.device)[rows]
    unknown = (modalities != IMAGE) & (modalities != VIDEO)
    # The end of a run of any length would wrap.
    misplaced = (offsets < before) | (lengths < 1) | (lengths > limit - offsets)
    for at in (unknown | misplaced).nonzero()[:1, 0].tolist():
        if bool(unknown[at]):
            raise ValueError(f"modalities must hold 1 or 2, got {int(modalities[at])} at run {at}")
        raise ValueError(
            f"row {int(rows[at])}, run {at} of placeholders must lie between tokens "
            f"{int(before[at])} and {int(limit[at])} and hold one at least, got offset "
            f"{int(offsets[at])} and length {int(lengths[at])}"
        )
