"""What the rules of single families share: how a call begins and fails."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.stream import Stream, make_stream
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec


def open_stream(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> Stream:
    """Return the tokens as a stream.

    With `validate`, and on a CPU, it is one of the exact form; otherwise no operation on it reads
    a value.
    """
    tracing = torch.compiler.is_compiling()
    exact = validate and inputs.input_ids.is_cpu and not tracing
    if not exact and not tracing:
        checks.check_index_range(inputs.input_ids)
    mask = inputs.attention_mask if spec.mask_rule == "skip" else None
    return make_stream(
        inputs.input_ids, mask, inputs.cu_seqlens, inputs.mm_token_type_ids, exact=exact
    )


def can_read(inputs: Inputs, *, validate: bool) -> bool:
    """Say whether a call may be answered on the host: checked, on a CPU, and none is masked."""
    input_ids = inputs.input_ids
    return (
        validate
        and input_ids.is_cpu
        and input_ids.numel() > 0
        and inputs.attention_mask is None
        and not torch.compiler.is_compiling()
    )


def grids_of(stream: Stream, grid_thw: Tensor | None) -> Tensor:
    """Return (I, 3) grids: none where none are given."""
    if grid_thw is not None:
        return grid_thw
    return torch.empty((0, 3), dtype=torch.int64, device=stream.input_ids.device)


def refuse_videos(inputs: Inputs, spec: MRopeSpec) -> None:
    """Refuse grids of videos; reads only how many there are.

    Raises:
        ValueError: if there are any.
    """
    if inputs.video_grid_thw is not None and inputs.video_grid_thw.shape[0]:
        raise ValueError(
            f"video_grid_thw must be None: {spec.model_type} has no videos, "
            f"got {inputs.video_grid_thw.shape[0]}"
        )


def kept_tokens(stream: Stream) -> Tensor:
    """Return (N,) bool: the unmasked tokens."""
    if stream.kept is not None:
        return stream.kept
    return torch.ones_like(stream.input_ids, dtype=torch.bool)


def positions_dtype(inputs: Inputs, spec: MRopeSpec) -> torch.dtype:
    """Return the dtype of the positions."""
    return inputs.input_ids.dtype if spec.position_dtype == "ids" else torch.int64
