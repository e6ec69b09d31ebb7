"""The pipeline in two or three launches, for CUDA tensors: the host side of `vecrope.kernels`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vecrope import kernels
from vecrope.spec import MRopeSpec


class Buffers(NamedTuple):
    """What a call writes."""

    position_ids: Tensor  # (3, B, T) in the dtype of the ids
    rope_deltas: Tensor  # (B, 1) int64
    faults: Tensor  # (3,) int64: not 0 where the prompt does not fit its grids
    work: Tensor  # int32, rows of one number a block, then rows of one number an item


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
        image_grid_thw: (num_images, 3) on that device, or None.
        video_grid_thw: (num_videos, 3) on that device, or None.
        attention_mask: (B, T), not 0 for a token, or None.
        mm_token_type_ids: (B, T), to be read instead of the ids, or None.
        validate: whether to wait for the device and see if the prompt fits its grids.

    Returns:
        (3, B, T) in the dtype of `input_ids`, and (B, 1) int64; or None if the prompt does not fit.
    """
    device = input_ids.device
    images, videos = _ready(image_grid_thw, device), _ready(video_grid_thw, device)
    num_items = sum(grids.shape[0] for grids in (images, videos) if grids is not None)
    shape = (input_ids.shape[0], input_ids.shape[1])
    with torch.cuda.device_of(input_ids):  # type: ignore[no-untyped-call]
        buffers = make_buffers(shape, num_items, input_ids.dtype, device)
        launch(
            input_ids.contiguous(),
            spec,
            images,
            videos,
            _ready(attention_mask, device),
            _ready(mm_token_type_ids, device),
            buffers,
        )
    if validate and bool(buffers.faults.any()):
        return None
    return buffers.position_ids, buffers.rope_deltas


def _ready(values: Tensor | None, device: torch.device) -> Tensor | None:
    """Return the values on the device, contiguous, and as numbers."""
    if values is None:
        return None
    if values.dtype == torch.bool:
        values = values.view(torch.uint8)
    return values.to(device).contiguous()


def make_buffers(
    shape: tuple[int, int], num_items: int, dtype: torch.dtype, device: torch.device
) -> Buffers:
    """Allocate what a call for (B, T) ids and so many grid rows writes."""
    num_rows, seq_len = shape
    num_blocks = num_rows * -(-seq_len // kernels.BLOCK)
    work = kernels.NUM_BLOCK_ROWS * num_blocks + kernels.NUM_ITEM_ROWS * num_items
    return Buffers(
        torch.empty((3, num_rows, seq_len), dtype=dtype, device=device),
        torch.empty((num_rows, 1), dtype=torch.int64, device=device),
        torch.empty((kernels.NUM_FAULTS,), dtype=torch.int64, device=device),
        torch.empty((work,), dtype=torch.int32, device=device),
    )


def launch(
    input_ids: Tensor,
    spec: MRopeSpec,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    kept: Tensor | None,
    token_types: Tensor | None,
    buffers: Buffers,
    sizes: Tensor | None = None,
) -> None:
    """Write `buffers`, in the current stream of their device. Synchronises nothing.

    Args:
        input_ids: (B, T) int64 or int32, contiguous, at least one token and fewer than 2**30.
        spec: the family's rules.
        image_grid_thw: (num_images, 3), contiguous, on the ids' device, as all are; or None.
        video_grid_thw: (num_videos, 3), contiguous; or None.
        kept: (B, T), contiguous, not 0 for a token; None: every one is.
        token_types: (B, T), contiguous, to be read instead of the ids.
        buffers: made for these sizes.
        sizes: int64, one number: 2**32 times the rows in use plus the tokens of each in use. Other
            tokens are as if masked, and no part of a row's length. None: all are in use.
    """
    num_rows, seq_len = input_ids.shape
    num_blocks = num_rows * -(-seq_len // kernels.BLOCK)
    num_images = 0 if image_grid_thw is None else image_grid_thw.shape[0]
    num_items = num_images + (0 if video_grid_thw is None else video_grid_thw.shape[0])
    image_id, start_id, end_id = spec.markers
    last = spec.marker_rule == "last"
    position_ids, rope_deltas, faults, work = buffers
    # Where there is no grid, nothing is read from its tensor.
    images = input_ids if image_grid_thw is None else image_grid_thw
    videos = input_ids if video_grid_thw is None else video_grid_thw
    if not last and token_types is None:
        kernels.mark[(num_blocks,)](
            input_ids, kept, sizes, work, seq_len, start_id, end_id, kernels.BLOCK
        )
    kernels.summarise[(num_blocks + 1,)](
        input_ids,
        kept,
        token_types,
        sizes,
        images,
        videos,
        rope_deltas,
        faults,
        work,
        seq_len,
        num_images,
        num_items,
        image_id,
        start_id,
        end_id,
        last,
        spec.spatial_merge_size,
        spec.span_rule == "thw",
        kernels.BLOCK,
        kernels.CHUNK,
    )
    kernels.write[(num_blocks,)](
        input_ids,
        kept,
        token_types,
        sizes,
        position_ids,
        rope_deltas,
        faults,
        work,
        seq_len,
        num_rows,
        num_images,
        num_items,
        num_items.bit_length(),
        image_id,
        start_id,
        end_id,
        last,
        spec.padding_value,
        spec.delta_length == "padded",
        kernels.BLOCK,
        kernels.CHUNK,
    )
