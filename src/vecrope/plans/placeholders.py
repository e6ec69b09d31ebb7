"""The plan of prompts whose placeholders are known by their offsets; no token is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from operator import add, gt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.modality import IMAGE, UNKNOWN_MARKERS, VIDEO
from vecrope.forms.eager.groups import make_parts
from vecrope.forms.eager.items import read_items
from vecrope.forms.eager.rope_index import Batch, as_column, ends_of_rows
from vecrope.forms.eager.write import write_positions
from vecrope.inputs import Inputs
from vecrope.plans.build import plan_of_inputs
from vecrope.plans.from_groups import plan_of_groups
from vecrope.plans.plan import RopeIndexPlan
from vecrope.spec import MRopeSpec


class _Prompts(NamedTuple):
    """The arguments of `plan_from_placeholders`."""

    num_tokens: int | Sequence[int]
    offsets: Tensor
    lengths: Tensor
    modalities: Tensor
    rows: Tensor | None
    image_grid_thw: Tensor | None
    video_grid_thw: Tensor | None
    second_per_grid_ts: Tensor | Sequence[float] | None
    dtype: torch.dtype
    validate: bool

    @property
    def counts(self) -> Sequence[int]:
        """The tokens of each prompt."""
        return [self.num_tokens] if isinstance(self.num_tokens, int) else [*self.num_tokens]

    def inputs(self, input_ids: Tensor, **others: Any) -> Inputs:
        """Return the arguments of `get_rope_index`."""
        grids = self.image_grid_thw, self.video_grid_thw
        return Inputs(input_ids, *grids, second_per_grid_ts=self.second_per_grid_ts, **others)


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
        num_tokens: tokens of each of B prompts; or one number, for one prompt.
        spec: of a family of the shared rule.
        offsets: (R,) integers, index in its prompt of each run's first token, ascending.
        lengths: (R,) integers, tokens of each run.
        modalities: (R,) integers, 1 for an image and 2 for a video.
        rows: (R,) integers, the prompt of each run, ascending; None: there is one prompt.
        image_grid_thw: (num_images, 3) integers in patches, in the order of the runs.
        video_grid_thw: (num_videos, 3) likewise.
        second_per_grid_ts: (num_videos,) as for `get_rope_index`.
        dtype: of the positions, int64 or int32.
        validate: check the values, which synchronises if they are not on a CPU. With False no value
            on another device is read, but `num_tokens` is copied from the host. With False on such
            a device, and under tracing, a run with several separate frames may give a plan of only
            -1: pass one run per frame.

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
    runs = num_tokens, offsets, lengths, modalities, rows
    media = image_grid_thw, video_grid_thw, second_per_grid_ts
    prompts = _Prompts(*runs, *media, dtype, validate)
    batch = _groups(prompts, spec)
    return _plan_by_types(prompts, spec) if batch is None else plan_of_groups(batch, spec, dtype)


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

    Arguments and errors are those of `plan_from_placeholders`, and so are the positions.

    Returns:
        `position_ids` (3, N) in `dtype`, one prompt after the other, and `rope_deltas` (B, 1)
        int64.
    """
    runs = num_tokens, offsets, lengths, modalities, rows
    media = image_grid_thw, video_grid_thw, second_per_grid_ts
    prompts = _Prompts(*runs, *media, dtype, validate)
    batch = _groups(prompts, spec)
    if batch is None or not batch.bounds[-1]:
        plan = _plan_by_types(prompts, spec)
        return plan.position_ids(), plan.rope_deltas
    *_, deltas = ends_of_rows(batch.parts, batch.bounds, spec)
    return write_positions(batch.parts, batch.bounds, dtype), as_column(deltas)


def _groups(prompts: _Prompts, spec: MRopeSpec) -> Batch | None:
    """Check the runs, and return their groups; None where they are not read, or not one each."""
    counts = _check_metadata(prompts, spec)
    on_host = prompts.offsets.is_cpu and not torch.compiler.is_compiling()
    if not on_host and (torch.compiler.is_compiling() or not prompts.validate):
        return None
    for name, values in zip(_Prompts._fields, prompts, strict=True):
        if isinstance(values, Tensor):
            checks.check_has_values(name, values)
    offsets, lengths, kinds = (values.tolist() for values in prompts[1:4])
    bounds, starts, stops = [*accumulate(counts, initial=0)], offsets, [*map(add, offsets, lengths)]
    sound = min(lengths, default=1) > 0 and not any(map(gt, [0, *stops], [*starts, bounds[-1]]))
    if prompts.rows is not None or not sound:
        rows = [0] * len(offsets) if prompts.rows is None else prompts.rows.tolist()
        _check_runs(rows, offsets, lengths, counts)
        begins = [*map(bounds.__getitem__, rows)]
        starts, stops = ([*map(add, begins, of_runs)] for of_runs in (offsets, stops))
    for kind in {*kinds} - {IMAGE, VIDEO}:
        raise ValueError(f"modalities must hold 1 or 2, got {kind} at run {kinds.index(kind)}")
    try:
        items = read_items(prompts.inputs(prompts.offsets), spec) if on_host else None
    except ValueError:  # named below, if it is to be
        items = None
    if items is None:
        return None
    item = items.in_order(kinds)
    touching = not spec.frames_may_touch and not {*starts}.isdisjoint(stops)
    fits = lengths == [*map(items.area.__getitem__, item)] and len(item) == sum(items.groups)
    if touching or not fits:
        return None
    open_markers = [0 if spec.marker_rule == "none" else UNKNOWN_MARKERS] * len(counts)
    return Batch(bounds, make_parts(items, starts, stops, item, [0] * len(item)), open_markers)


def _check_runs(
    rows: Sequence[int], offsets: Sequence[int], lengths: Sequence[int], counts: Sequence[int]
) -> None:
    """Check that runs lie in their prompts, in order, and hold a token."""
    last = end = 0
    for at, (row, offset, length) in enumerate(zip(rows, offsets, lengths, strict=True)):
        if not last <= row < len(counts):
            raise ValueError(f"rows must ascend from 0 to {len(counts) - 1}, got {row} at run {at}")
        before = end if row == last else 0
        last, end = row, offset + length
        if offset < before or length < 1 or end > counts[row]:
            raise ValueError(
                f"row {row}, run {at} of placeholders must lie between tokens {before} and "
                f"{counts[row]} and hold one at least, got offset {offset} and length {length}"
            )


def _plan_by_types(prompts: _Prompts, spec: MRopeSpec) -> RopeIndexPlan:
    """Return the plan of tokens that have just a type, which names what is wrong, too."""
    offsets, lengths, modalities, rows = prompts[1:5]
    counts, dtype, capacity = prompts.counts, prompts.dtype, None
    bounds = torch.tensor([0, *counts], dtype=torch.int64, device=offsets.device).cumsum(0)
    begin = offsets if rows is None else bounds[rows.long()] + offsets
    change = torch.zeros(sum(counts) + 1, dtype=dtype, device=offsets.device)
    for edge, kind in ((begin, modalities), (begin + lengths, -modalities)):
        change.index_add_(0, edge.clamp(0, sum(counts)), kind.to(dtype))
    types = change.cumsum(0, dtype=dtype)[:-1]
    if torch.compiler.is_compiling() or not offsets.is_cpu:
        grids = prompts.image_grid_thw, prompts.video_grid_thw
        capacity = sum(len(each) for each in (offsets, counts, *grids) if each is not None)
    inputs = prompts.inputs(types, cu_seqlens=bounds, mm_token_type_ids=types)
    plan = plan_of_inputs(inputs, spec, validate=prompts.validate, max_groups=capacity)
    return replace(plan, dtype=dtype)


def _check_metadata(prompts: _Prompts, spec: MRopeSpec) -> Sequence[int]:
    """Check types, shapes and dtypes, and return the tokens of each prompt."""
    checks.check_spec(spec)
    if spec.own_rule is not None:
        raise ValueError(
            f"{spec.model_type} has no plan from placeholders: it is numbered by a rule of its own"
        )
    num_tokens, dtype, videos = prompts.num_tokens, prompts.dtype, prompts.video_grid_thw
    if dtype is not torch.int64 and dtype is not torch.int32:
        raise TypeError(f"dtype must be torch.int64 or torch.int32, got {dtype}")
    if not isinstance(num_tokens, int | Sequence):
        found = type(num_tokens).__name__
        raise TypeError(f"num_tokens must be an int or a sequence of ints, got {found}")
    counts = prompts.counts
    for count in counts:
        checks.check_int("num_tokens", count, 0)
    if not counts:
        raise ValueError("num_tokens must hold a number for each prompt, got none")
    if prompts.rows is None and len(counts) > 1:
        raise ValueError(f"rows must be given for {len(counts)} prompts, got None")
    shape = None
    of_runs: dict[str, Any] = dict(zip(_Prompts._fields[1:5], prompts[1:5], strict=True))
    for name, values in of_runs.items():
        if name == "rows" and values is None:
            continue
        checks.check_tensor(name, values)
        if values.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} must be int64 or int32, got {values.dtype}")
        shape = shape or tuple(values.shape)
        if values.dim() != 1 or values.shape != shape:
            raise ValueError(
                f"{name} must have shape (R,) as offsets {shape}, got {tuple(values.shape)}"
            )
    checks.check_grid_shapes(prompts.image_grid_thw, videos)
    num_videos = 0 if videos is None else videos.shape[0]
    checks.check_seconds_argument(prompts.second_per_grid_ts, num_videos, spec)
    return counts
