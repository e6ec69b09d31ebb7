"""The pipeline in two or three launches: the host side of the kernels."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from vecrope.core.items import has_time_scale, time_dtypes
from vecrope.core.modality import UNKNOWN_MARKERS
from vecrope.forms.triton import constants, kernels
from vecrope.inputs import Inputs, positions_dtype
from vecrope.spec import MRopeSpec

_KERNELS = kernels.mark, kernels.summarise, kernels.write
_RULES = {"none": "ids", "adjacent": "ids", "last": "last", "count": "count"}
_FLOATS = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


class Buffers(NamedTuple):
    """What a call writes."""

    position_ids: Tensor  # (3, B, T) or (3, N); of a plan (3, 0)
    rope_deltas: Tensor  # (B, 1) int64
    work: Tensor  # int32: the faults, then rows of a number a block, then rows of a number an item

    @property
    def faults(self) -> Tensor:
        """(3,) int64: not 0 where the prompt does not fit its grids."""
        return self.work[: 2 * constants.NUM_FAULTS].view(torch.int64)


class PlanTables(NamedTuple):
    """What a plan is made of, and what it takes to make it."""

    rows: Tensor  # as `PlanTable` has them
    entries: Tensor  # as `GroupPlan` has them, int32
    time_scale: Tensor | None  # likewise, contiguous; None: the number of a frame is its offset
    outline: Tensor  # int32: two numbers a block


def fused_rope_index(
    inputs: Inputs, spec: MRopeSpec, *, validate: bool
) -> tuple[Tensor, Tensor] | None:
    """Return the positions and deltas of a batch, for a shared-rule family.

    Args:
        inputs: at least one token and fewer than 2**30, on a device with Triton; types and shapes
            have been checked. What is elsewhere is copied to the device of the ids.
        spec: of the shared rule.
        validate: whether to wait for the device and see if the values are good.

    Returns:
        What `vecrope.get_rope_index` does; or None if the values are not good.
    """
    buffers = launch(inputs, spec, validate=validate)
    if validate and any(buffers.faults.tolist()):
        return None
    return buffers.position_ids, buffers.rope_deltas


def launch(inputs: Inputs, spec: MRopeSpec, *, validate: bool, traced: bool = False) -> Buffers:
    """Launch the kernels for a batch, and return what they write; reads no value.

    With `traced` a compiler that traces the call sees each launch.
    """
    ids, bounds = inputs.input_ids, inputs.cu_seqlens
    num_rows = ids.shape[0] if bounds is None else bounds.shape[0] - 1
    num_items, dtype = _num_items(inputs), positions_dtype(inputs, spec)
    buffers = make_buffers(tuple(ids.shape), num_rows, num_items, dtype, ids)
    flags = inputs.allow_unused_grids, inputs.round_grid_sides
    launcher(spec, ids.device, validate, *flags)(inputs, buffers, traced=traced)
    return buffers


def _num_items(inputs: Inputs) -> int:
    images, videos = inputs.image_grid_thw, inputs.video_grid_thw
    return (0 if images is None else images.shape[0]) + (0 if videos is None else videos.shape[0])


def fused_plan(
    inputs: Inputs, spec: MRopeSpec, *, validate: bool, capacity: int | None
) -> PlanTables | None:
    """Return the tables of a batch's plan, for a shared-rule family.

    Args:
        inputs: as for `fused_rope_index`.
        spec: of the shared rule.
        validate: likewise.
        capacity: entries of the plan. If there are more, one masked run covers the batch. None: one
            for each token, of which with `validate` only those in use are returned.

    Returns:
        The tables; or None if the values are not good or there are more entries.
    """
    ids, bounds, videos = inputs.input_ids, inputs.cu_seqlens, inputs.video_grid_thw
    num_rows = ids.shape[0] if bounds is None else bounds.shape[0] - 1
    num_blocks = _most_blocks(tuple(ids.shape), num_rows)
    num_entries = ids.numel() if capacity is None else capacity
    num_numbers = _work_size(num_blocks, _num_items(inputs))
    work = ids.new_empty((num_numbers + 2 * num_blocks,), dtype=torch.int32)
    deltas = ids.new_empty((num_rows, 1), dtype=torch.int64)
    time_scale = None
    if has_time_scale(spec):
        timed = spec.video_time == "seconds" and videos is not None and videos.shape[0]
        dtype = time_dtypes(inputs.second_per_grid_ts, spec)[1] if timed else torch.int32
        time_scale = ids.new_empty((num_entries, 2), dtype=dtype)
    tables = PlanTables(
        ids.new_empty((num_rows, 5), dtype=torch.int64),
        ids.new_empty((num_entries, 7), dtype=torch.int32),
        time_scale,
        work[num_numbers:],
    )
    buffers = Buffers(ids.new_empty((3, 0)), deltas, work)
    flags = inputs.allow_unused_grids, inputs.round_grid_sides
    launcher(spec, ids.device, validate, *flags)(inputs, buffers, tables=tables)
    if not validate:
        return tables
    if capacity is not None:
        return None if any(buffers.faults.tolist()) else tables
    # Both are read in one wait.
    used = tables.outline[:num_blocks].sum().view(1)
    *faults, number = torch.cat((buffers.faults, used)).tolist()
    if any(faults):
        return None
    scale = None if time_scale is None else time_scale[:number].clone()
    return tables._replace(entries=tables.entries[:number].clone(), time_scale=scale)


def invalidate(buffers: Buffers) -> None:
    """Write -1 to every position and the least int64 to every delta if there is a fault.

    A compiler that traces the call sees the launch.
    """
    position_ids, rope_deltas, work = buffers
    num_programs = -(-max(position_ids.numel(), rope_deltas.numel()) // constants.BLOCK)
    with device_of(position_ids):
        wrap_triton(kernels.invalidate)[(num_programs, 1, 1)](
            position_ids, rope_deltas, work,
            position_ids.numel(), rope_deltas.numel(), constants.BLOCK,
        )  # fmt: skip


def device_of(values: Tensor) -> AbstractContextManager[object]:
    """Return a context in which the device of a tensor is the current one."""
    return torch.accelerator.device_index(values.device.index)


def make_buffers(
    shape: tuple[int, ...], num_rows: int, num_items: int, dtype: torch.dtype, like: Tensor
) -> Buffers:
    """Allocate what a call writes.

    Args:
        shape: of the ids, (B, T) or packed (N,).
        num_rows: B, or the number of packed sequences.
        num_items: rows of both grids.
        dtype: of the positions.
        like: a tensor on the device.
    """
    work = _work_size(_most_blocks(shape, num_rows), num_items)
    return Buffers(
        like.new_empty((3, *shape), dtype=dtype),
        like.new_empty((num_rows, 1), dtype=torch.int64),
        like.new_empty((work,), dtype=torch.int32),
    )


def _work_size(num_blocks: int, num_items: int) -> int:
    numbers = constants.NUM_BLOCK_ROWS * num_blocks + constants.NUM_ITEM_ROWS * num_items
    return 2 * constants.NUM_FAULTS + numbers


def _most_blocks(shape: tuple[int, ...], num_rows: int) -> int:
    if len(shape) == 2:
        return num_rows * -(-shape[1] // constants.BLOCK)
    # Each packed sequence has one that is not full at the most, and one where it is empty.
    return shape[0] // constants.BLOCK + num_rows


class Launcher:
    """Launches the kernels by the rules of a spec on a device.

    Args:
        spec: of the shared rule.
        device: of all that is read and written.
        check: whether the faults are to tell, too, if markers and frames stand where they must.
            All others are counted in any case.
        allow_unused_grids: whether grids may be left over.
        round_grid_sides: whether sides that the merge size does not divide are rounded down.
    """

    def __init__(
        self,
        spec: MRopeSpec,
        device: torch.device,
        check: bool = True,
        allow_unused_grids: bool = False,
        round_grid_sides: bool = False,
    ) -> None:
        self.spec = spec
        self._device = device
        self._check = check
        self._allow_unused_grids = allow_unused_grids
        self._round_grid_sides = round_grid_sides
        # What Triton has compiled the kernels to, by what it looks at to compile them, and the
        # constants. To launch that spares its own look-up, which takes longer than the launch.
        self._compiled: dict[tuple[object, ...], tuple[Any, ...]] = {}

    def __call__(
        self,
        inputs: Inputs,
        buffers: Buffers,
        sizes: Tensor | None = None,
        tables: PlanTables | None = None,
        traced: bool = False,
    ) -> None:
        """Write `buffers`, in the current stream of the device.

        Synchronises nothing if all arguments are on the device.

        Args:
            inputs: (B, T) or packed (N,) ids, at least one token and fewer than 2**30.
            buffers: of these shapes, with at least as much to work in.
            sizes: int64, one number: 2**32 times the rows in use plus the tokens of each in use, or
                2**32 times the packed sequences in use plus all their tokens. Other tokens are as
                if masked, and no part of a row's length. None: all are in use.
            tables: of a plan, which are written in place of positions, in one pass more.
            traced: as for `launch`.
        """
        ids, image_grids, video_grids, mask, bounds, types, seconds = inputs[:7]
        position_ids, rope_deltas, work = buffers
        positions = position_ids if tables is None else None
        num_rows = rope_deltas.shape[0]
        num_tokens, seq_len = ids.numel(), ids.shape[-1]
        tiles = constants.BLOCK, constants.CHUNK
        num_blocks = _most_blocks(tuple(ids.shape), num_rows)
        if self.spec.mask_rule == "ignore" and not self._check:
            mask = None  # with checks it is read for its codes
        as_numbers = not isinstance(seconds, Tensor)
        if self.spec.video_time != "seconds" or video_grids is None:
            seconds = None
        elif seconds is not None and not isinstance(seconds, Tensor):
            seconds = torch.tensor(seconds, dtype=torch.float64, device="cpu")
        num_images = 0 if image_grids is None else image_grids.shape[0]
        num_items = _num_items(inputs)
        # Where there is no grid, nothing is read from its tensor.
        images = rope_deltas if image_grids is None else image_grids
        videos = rope_deltas if video_grids is None else video_grids
        ids = ids.contiguous()
        others = [
            None if values is None else self._ready(values)
            for values in (mask, types, bounds, seconds, images, videos)
        ]
        scale = None if tables is None else tables.time_scale
        dtypes = [None if values is None else values.dtype for values in (ids, *others, scale)]
        key = (as_numbers, sizes is None, tables is None, *dtypes)
        mask, types, bounds, seconds, *grids = others
        writes: tuple[tuple[object, ...], ...] = ((None,) * 4 + (0,),)
        if tables is not None:
            rows, entries, time_scale, outline = tables
            counted = outline, entries, time_scale
            capacity = entries.shape[0]
            writes = (*counted, None, capacity), (*counted, rows, capacity)
        compiled = None if traced else self._compiled.get(key)
        if compiled is None:
            of_kernels = self._constants(None if as_numbers else seconds, types is not None)
            launched = [wrap_triton(kernel) for kernel in _KERNELS] if traced else _KERNELS
            compiled = (*launched[:2], *of_kernels, *launched[2:] * len(writes))
        mark, summarise, of_mark, of_summarise, of_write, *kernels_of_writes = compiled
        with device_of(ids):
            if types is None and self.spec.marker_rule == "count":
                mark = mark[(num_blocks, 1, 1)](
                    ids, mask, bounds, sizes, work,
                    num_tokens, seq_len, num_rows, *of_mark, *tiles,
                )  # fmt: skip
            summarise = summarise[(num_blocks + 1, 1, 1)](
                ids, mask, types, bounds, seconds, sizes, *grids, rope_deltas, work,
                num_tokens, seq_len, num_rows, num_images, num_items, *of_summarise, *tiles,
            )  # fmt: skip
            for at, targets in enumerate(writes):
                kernels_of_writes[at] = kernels_of_writes[at][(num_blocks, 1, 1)](
                    ids, mask, types, bounds, seconds, sizes, positions, rope_deltas, work,
                    *targets, num_tokens, seq_len, num_rows, num_images, num_items,
                    *of_write, *tiles,
                )  # fmt: skip
        if summarise is not None:  # where Triton interprets a kernel, or a call is traced, it is
            constant = of_mark, of_summarise, of_write
            self._compiled[key] = (mark, summarise, *constant, *kernels_of_writes)

    def _constants(self, seconds: Tensor | None, by_types: bool) -> tuple[tuple[object, ...], ...]:
        """Return the constants of each kernel, in its order.

        Args:
            seconds: given as a tensor, or None.
            by_types: whether types are given.
        """
        spec = self.spec
        images_and_videos = spec.image_token_id, spec.video_token_id
        markers = spec.video_start_token_id, spec.video_end_token_id
        ignore_mask = spec.mask_rule == "ignore"
        adjacent = spec.marker_rule == "adjacent" and not by_types
        # None: they are counted.
        open_markers = UNKNOWN_MARKERS if by_types else None
        classes = (*images_and_videos, *markers, _RULES[spec.marker_rule], ignore_mask)
        times = (spec.image_time == "none", *self._time(seconds))
        return (
            (*markers, ignore_mask),
            (
                *classes,
                spec.spatial_merge_size,
                spec.temporal_merge_size,
                spec.separate_frames,
                spec.span_rule == "thw",
                not spec.multi_frame_images,
                self._round_grid_sides,
                *times,
            ),
            (
                *classes,
                spec.vision_start_token_id if adjacent else None,
                self._check,
                self._check and not spec.frames_may_touch,
                spec.padding_value,
                spec.delta_length == "padded",
                self._allow_unused_grids,
                0 if spec.marker_rule == "none" else open_markers,
                *times,
            ),
        )

    def _time(self, seconds: Tensor | None) -> tuple[object, ...]:
        """Return the rate, whether it comes first, the default and the dtypes of `temporal_offset`.

        They are those of `vecrope.core.items.video_time_scale`; seconds read as int64 are cut.
        """
        spec = self.spec
        if spec.video_time != "seconds":
            return None, False, None, None, None
        read_as, count_as = time_dtypes(seconds, spec)
        assert spec.tokens_per_second is not None
        default = spec.default_seconds
        if default is None:
            default = -1 if self._check else 0  # which is no number of seconds
        rate = float(spec.tokens_per_second)
        read = tl.int64 if spec.time_dtype == "int64" else _FLOATS[read_as]
        return rate, spec.time_order == "rate", float(default), read, _FLOATS[count_as]

    def _ready(self, values: Tensor) -> Tensor:
        """Return the values on the device, contiguous."""
        if values.device != self._device:
            values = values.to(self._device)
        return values.contiguous()


launcher = lru_cache(Launcher)
