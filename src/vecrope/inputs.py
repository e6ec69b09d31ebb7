"""The tensors of one call, as they are handed from stage to stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.spec import MRopeSpec

# Of positions, where that is not the dtype of the ids.
_DTYPES = {"int64": torch.int64, "float32": torch.float32}


class Inputs(NamedTuple):
    """The arguments of `vecrope.get_rope_index` that describe a batch, by the same names."""

    input_ids: Tensor
    image_grid_thw: Tensor | None = None
    video_grid_thw: Tensor | None = None
    attention_mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    mm_token_type_ids: Tensor | None = None
    second_per_grid_ts: Tensor | Sequence[float] | None = None
    audio_seqlens: Tensor | None = None
    use_audio_in_video: bool | Tensor | Sequence[bool] = False
    images_per_sample: Tensor | None = None
    target_sizes: Tensor | None = None
    target_sizes_videos: Tensor | None = None
    # For adapters of upstreams that mind neither: grids that no token asks for, and sides that the
    # merge size does not divide, which are rounded down.
    allow_unused_grids: bool = False
    round_grid_sides: bool = False
    # (B,) markers that are open before each row, as `PlanTable.rows` has them behind it, where the
    # rows go on from others; None: none are. The kernels do not take them.
    open_markers: Tensor | None = None


def positions_dtype(inputs: Inputs, spec: MRopeSpec) -> torch.dtype:
    """Return the dtype of the positions of a batch."""
    return _DTYPES.get(spec.position_dtype) or inputs.input_ids.dtype


def on_cpu(inputs: Inputs) -> Inputs:
    """Return the arguments with every tensor copied to the CPU."""
    return Inputs._make(v.to("cpu") if isinstance(v, Tensor) else v for v in inputs)
