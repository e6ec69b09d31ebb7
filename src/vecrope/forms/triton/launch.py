"""The pipeline in two or three launches, for CUDA tensors: the host side of the kernels."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vecrope.forms.triton import constants, kernels
from vecrope.spec import MRopeSpec

_KERNELS = kernels.mark, kernels.summarise, kernels.write


class Buffers(NamedTuple):
    """What a call writes."""

    position_ids: Tensor  # (3, B, T) in the dtype of the ids
    rope_deltas: Tensor  # (B, 1) int64
    work: Tensor  # int32: the faults, then rows of a number a block, then rows of a number an item

    @property
    def faults(self) -> Tensor:
        """(3,) int64: not 0 where the prompt does not fit its grids."""
        return self.work[: 2 * constants.NUM_FAULTS].view(torch.int64)


def fused_rope_index(
    input_ids: Tensor,
    spec: MRopeSpec,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    attention_mask: Tensor | None,
    mm_token_type_ids: Tensor | None,
    *,
    validate: bool,
) -> tuple[Tensor, Tensor] | None:
    """Return the positions and deltas of a padded batch.

    Args:
        input_ids: (B, T) on a CUDA device, at least one token and fewer than 2**30.
        spec: the family's rules.
        image_grid_thw: (num_images, 3), or None.
        video_grid_thw: (num_videos, 3), or None.
        attention_mask: (B, T), not 0 for a token, or None.
        mm_token_type_ids: (B, T), to be read instead of the ids, or None.
        validate: whether to wait for the device and see if the values are good.

    Returns:
        (3, B, T) in the dtype of `input_ids`, and (B, 1) int64; or None if the values are not good.
    """
    grids = (image_grid_thw, video_grid_thw)
    num_items = sum(0 if rows is None else rows.shape[0] for rows in grids)
    shape = (input_ids.shape[0], input_ids.shape[1])
    device = input_ids.device
    buffers = make_buffers(shape, num_items, input_ids.dtype, device)
    launcher(spec, device)(input_ids, *grids, attention_mask, mm_token_type_ids, buffers)
    if validate and any(buffers.faults.tolist()):
        return None
    return buffers.position_ids, buffers.rope_deltas


def make_buffers(
    shape: tuple[int, int], num_items: int, dtype: torch.dtype, device: torch.device
) -> Buffers:
    """Allocate what a call for (B, T) ids and so many grid rows writes."""
    num_rows, seq_len = shape
    num_blocks = num_rows * -(-seq_len // constants.BLOCK)
    work = 2 * constants.NUM_FAULTS
    work += constants.NUM_BLOCK_ROWS * num_blocks + constants.NUM_ITEM_ROWS * num_items
    return Buffers(
        torch.empty((3, num_rows, seq_len), dtype=dtype, device=device),
        torch.empty((num_rows, 1), dtype=torch.int64, device=device),
        torch.empty((work,), dtype=torch.int32, device=device),
    )


class Launcher:
    """Launches the kernels by the rules of a spec on a CUDA device."""

    def __init__(self, spec: MRopeSpec, device: torch.device) -> None:
        self._device = device
        self._last = spec.marker_rule == "last"
        image, *markers = spec.markers
        rules = image, *markers, self._last
        self._constants = (
            markers,
            (
                *rules,
                spec.spatial_merge_size,
                spec.span_rule == "thw",
                not spec.multi_frame_images,
            ),
            (*rules, spec.padding_value, spec.delta_length == "padded"),
        )
        # What Triton has compiled the kernels to, by what it looks at to compile them. To launch
        # that spares its own look-up, which takes longer than the launch.
        self._compiled: dict[tuple[object, ...], tuple[Any, Any, Any]] = {}

    def __call__(
        self,
        input_ids: Tensor,
        image_grid_thw: Tensor | None,
        video_grid_thw: Tensor | None,
        attention_mask: Tensor | None,
        mm_token_type_ids: Tensor | None,
        buffers: Buffers,
        sizes: Tensor | None = None,
    ) -> None:
        """Write `buffers`, in the current stream of the device.

        Synchronises nothing if all arguments are on the device.

        Args:
            input_ids: (B, T) int64 or int32, at least one token and fewer than 2**30.
            image_grid_thw: (num_images, 3), or None.
            video_grid_thw: (num_videos, 3), or None.
            attention_mask: (B, T), not 0 for a token; None: every one is.
            mm_token_type_ids: (B, T), to be read instead of the ids, or None.
            buffers: of these shapes, with at least as much to work in.
            sizes: int64, one number: 2**32 times the rows in use plus the tokens of each in use.
                Other tokens are as if masked, and no part of a row's length. None: all are in use.
        """
        num_rows, seq_len = input_ids.shape
        num_blocks = num_rows * -(-seq_len // constants.BLOCK)
        position_ids, rope_deltas, work = buffers
        input_ids = input_ids.contiguous()
        mask = None if attention_mask is None else self._ready(attention_mask)
        types = None if mm_token_type_ids is None else self._ready(mm_token_type_ids)
        # Where there is no grid, nothing is read from its tensor.
        images = videos = rope_deltas
        num_images = num_items = 0
        if image_grid_thw is not None:
            images = self._ready(image_grid_thw)
            num_images = num_items = images.shape[0]
        if video_grid_thw is not None:
            videos = self._ready(video_grid_thw)
            num_items += videos.shape[0]
        key = (
            input_ids.dtype,
            None if mask is None else mask.dtype,
            None if types is None else types.dtype,
            images.dtype,
            videos.dtype,
            sizes is None,
        )
        mark, summarise, write = self._compiled.get(key, _KERNELS)
        of_mark, of_summarise, of_write = self._constants
        tiles = constants.BLOCK, constants.CHUNK
        with torch.cuda.device_of(input_ids):  # type: ignore[no-untyped-call]
            if types is None and not self._last:
                mark = mark[(num_blocks, 1, 1)](
                    input_ids, mask, sizes, work, seq_len, *of_mark, constants.BLOCK
                )
            summarise = summarise[(num_blocks + 1, 1, 1)](
                input_ids, mask, types, sizes, images, videos, rope_deltas, work,
                seq_len, num_images, num_items, *of_summarise, *tiles,
            )  # fmt: skip
            write = write[(num_blocks, 1, 1)](
                input_ids, mask, types, sizes, position_ids, rope_deltas, work,
                seq_len, num_rows, num_images, num_items, num_items.bit_length(),
                *of_write, *tiles,
            )  # fmt: skip
        if write is not None and constants.COMPILED_TAKE_CONSTANTS:
            self._compiled[key] = mark, summarise, write

    def _ready(self, values: Tensor) -> Tensor:
        """Return the values on the device, contiguous, and as numbers."""
        if values.dtype == torch.bool:
            values = values.view(torch.uint8)
        if values.device != self._device:
            values = values.to(self._device)
        return values.contiguous()


launcher = lru_cache(Launcher)
