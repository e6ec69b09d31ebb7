"""The plan of prompts whose placeholders are known by their offsets; no token is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from operator import add, le

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope import checks
from vecrope.core import faults
from vecrope.core.items import make_items
from vecrope.core.modality import IMAGE, VIDEO
from vecrope.forms.eager.from_runs import positions_of_runs
from vecrope.plans.entries import plan_of_groups
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.runs import Runs, cut_at_groups, is_faulty, parts_of_runs, raise_fault
from vecrope.spec import MRopeSpec


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

    A run is a stretch of placeholders of one image or one video, without anything else in between:
    an image, a video that is one block, or a frame of a video that has text between its frames. The
    plan is that of `plan_rope_index` for packed `input_ids` that hold these runs.

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
        validate: check the values, which synchronises where they are not on a CPU; not to be asked
            under tracing. False reads none that are not on a CPU, but copies `num_tokens` from the
            host. There, and under tracing, a run that reaches over the end of its group (images,
            or frames, that touch) gives a plan of -1 throughout: give a run for each.

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
    counts = [num_tokens] if isinstance(num_tokens, int) else list(num_tokens)
    runs = (offsets, lengths, modalities)
    grids = (image_grid_thw, video_grid_thw)
    _check_metadata(counts, spec, runs, rows, grids, second_per_grid_ts, dtype)
    device = offsets.device
    rows = torch.zeros_like(offsets) if rows is None else rows
    if validate:
        _check_values(counts, offsets, lengths, modalities, rows)
    no_grid = torch.empty((0, 3), dtype=torch.int64, device=device)
    images, videos = (no_grid if grid is None else grid.to(device) for grid in grids)
    if validate:
        faults.check_grids(images, videos, spec)
        faults.check_seconds(second_per_grid_ts, videos, spec)
    bounds = torch.tensor([0, *counts], dtype=torch.int64, device=device).cumsum(0)
    items = make_items(images, videos, spec, torch.int64, second_per_grid_ts)
    begin = bounds[rows.long()] + offsets
    found = Runs(begin, lengths.long(), modalities == VIDEO, rows.long())
    if offsets.is_cpu and not torch.compiler.is_compiling():
        parts, misfit = cut_at_groups(found, items), None
    else:
        parts, misfit = parts_of_runs(found, items)
    if validate and is_faulty(parts, found, items, spec):
        raise_fault(found, bounds, images, videos, items, spec)
    plan = plan_of_groups(
        parts.groups,
        spec,
        row_bounds=bounds,
        num_tokens=sum(counts),
        seq_len=None,
        dtype=dtype,
    )
    return plan if misfit is None else plan.voided(misfit)


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

    They are those of the plan that `plan_from_placeholders` makes of the same arguments. One prompt
    on a CPU, in which every run is one group, takes a shorter way.

    Returns:
        `position_ids` (3, N) in `dtype`, one prompt after the other, and `rope_deltas` (B, 1)
        int64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes or values that do not fit, or a family of its own rule.
    """
    counts = [num_tokens] if isinstance(num_tokens, int) else list(num_tokens)
    runs, grids = (offsets, lengths, modalities), (image_grid_thw, video_grid_thw)
    _check_metadata(counts, spec, runs, rows, grids, second_per_grid_ts, dtype)
    if len(counts) == 1 and rows is None and offsets.is_cpu and not torch.compiler.is_compiling():
        answer = positions_of_runs(counts[0], spec, runs, grids, second_per_grid_ts, dtype)
        if answer is not None:
            return answer
    plan = plan_from_placeholders(
        num_tokens,
        spec,
        offsets=offsets,
        lengths=lengths,
        modalities=modalities,
        rows=rows,
        image_grid_thw=image_grid_thw,
        video_grid_thw=video_grid_thw,
        second_per_grid_ts=second_per_grid_ts,
        dtype=dtype,
        validate=validate,
    )
    return plan.position_ids(), plan.rope_deltas


def _in_order(offsets: list[int], lengths: list[int], limit: int) -> bool:
    """Say whether runs hold a token each, lie one behind the other, and end at `limit` at most."""
    ends = map(add, offsets, lengths)
    return all(map(le, [0, *ends], [*offsets, limit])) and min(lengths) > 0


def _check_metadata(
    counts: Sequence[object],
    spec: MRopeSpec,
    runs: tuple[Tensor, Tensor, Tensor],
    rows: Tensor | None,
    grids: tuple[Tensor | None, Tensor | None],
    seconds: Tensor | Sequence[float] | None,
    dtype: torch.dtype,
) -> None:
    """Check types, shapes and dtypes of runs of placeholders and of grids."""
    if not isinstance(spec, MRopeSpec):
        raise TypeError(f"spec must be an MRopeSpec, got {type(spec).__name__}")
    if spec.own_rule is not None:
        raise ValueError(
            f"{spec.model_type} has no plan from placeholders: it is numbered by a rule of its own"
        )
    if dtype not in (torch.int64, torch.int32):
        raise TypeError(f"dtype must be torch.int64 or torch.int32, got {dtype}")
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"num_tokens must hold ints, got {count!r}")
        if count < 0:
            raise ValueError(f"num_tokens must not be negative, got {count}")
    if not counts:
        raise ValueError("num_tokens must hold a number for each prompt, got none")
    offsets = runs[0]
    given = dict(zip(("offsets", "lengths", "modalities"), runs, strict=True))
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
    checks.check_grid_shapes(*grids)
    num_videos = 0 if grids[1] is None else grids[1].shape[0]
    checks.check_seconds_argument(seconds, num_videos, spec)


def _check_values(
    counts: Sequence[int], offsets: Tensor, lengths: Tensor, modalities: Tensor, rows: Tensor
) -> None:
    """Check that the runs lie in their prompts, one behind the other; synchronises."""
    if not offsets.shape[0]:
        return
    if offsets.is_cpu and not rows.any():
        kinds = modalities.tolist()
        known = kinds.count(IMAGE) + kinds.count(VIDEO) == len(kinds)
        if known and _in_order(offsets.tolist(), lengths.tolist(), counts[0]):
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
