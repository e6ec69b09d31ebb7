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


def num_axes_of(spec: MRopeSpec) -> int:
    """Return the number of axes of a family's positions."""
    num_axes: int = getattr(spec.own_rule, "num_axes", 3)
    return num_axes


def on_cpu(inputs: Inputs) -> Inputs:
    """Return the arguments with every tensor copied to the CPU, in one wait for their device.

    Raises:
        RuntimeError: while a graph captures the device's work: it does not run, so that there is
            nothing to wait for.
    """
    last: dict[torch.device, Tensor] = {}  # of each device what is copied last, which is not empty
    for value in inputs:
        if isinstance(value, Tensor) and not value.is_cpu and value.numel():
            last[value.device] = value
    for device in last:
        _check_no_capture(device)
    # A device copies in order, so that its last copy waits for the others. To a tensor that is not
    # contiguous torch copies twice, the second time on the host and at once.
    return Inputs._make(
        value.to(
            "cpu",
            non_blocking=may_go_on(value.device) and value is not last.get(value.device),
            memory_format=torch.contiguous_format,
        )
        if isinstance(value, Tensor)
        else value
        for value in inputs
    )


def on_device(answer: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return positions and deltas of the host, copied to a device without a wait for it."""
    position_ids, rope_deltas = answer
    go_on = may_go_on(device)
    return position_ids.to(device, non_blocking=go_on), rope_deltas.to(device, non_blocking=go_on)


def may_go_on(device: torch.device) -> bool:
    """Say whether copies from and to memory that is not pinned may go on after they are asked for.

    They may where the driver first takes what it is to copy, so that its source may be freed. On
    MPS it does not, and other devices may not.
    """
    return device.type in ("cuda", "xpu")


def _check_no_capture(device: torch.device) -> None:
    # No other device captures graphs.
    is_capturing = getattr(torch.get_device_module(device), "is_current_stream_capturing", None)
    if is_capturing is not None and is_capturing():
        raise RuntimeError(
            f"a graph of the {device.type} device cannot capture this call, which reads its "
            "arguments on the host; call it before the capture, and copy the positions into a "
            "tensor that the graph reads"
        )
