"""The kernels as one operator of torch, for compiled graphs.

The operator takes what distinguishes a family as one text, so that a graph that holds it can be
cached and loaded by another process, and a call of it reads one attribute of the spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vecrope.forms.select import fused_pipeline
from vecrope.inputs import Inputs, positions_dtype
from vecrope.spec import MRopeSpec

NAME = "vecrope::rope_index"

torch.library.define(
    NAME,
    "(Tensor input_ids, Tensor? image_grid_thw, Tensor? video_grid_thw, Tensor? attention_mask, "
    "Tensor? cu_seqlens, Tensor? mm_token_type_ids, Tensor? second_per_grid_ts, "
    "float[]? seconds, bool allow_unused_grids, bool round_grid_sides, bool validate, "
    "str spec) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def traced_rope_index(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> tuple[Tensor, Tensor]:
    """Return what `vecrope.get_rope_index` does for a shared-rule family, as one node of a graph.

    With `validate` a misfit gives -1 in every position and the least int64 in every delta.
    """
    seconds = inputs.second_per_grid_ts
    as_tensor = isinstance(seconds, Tensor)
    answer: tuple[Tensor, Tensor] = torch.ops.vecrope.rope_index(
        *inputs[:6],
        seconds if as_tensor else None,
        None if as_tensor or seconds is None else list(seconds),
        inputs.allow_unused_grids,
        inputs.round_grid_sides,
        validate,
        spec.as_text,
    )
    return answer


@torch.library.impl(NAME, "default")
def _launched(
    input_ids: Tensor,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    attention_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    mm_token_type_ids: Tensor | None,
    second_per_grid_ts: Tensor | None,
    seconds: Sequence[float] | None,
    allow_unused_grids: bool,
    round_grid_sides: bool,
    validate: bool,
    spec: str,
) -> tuple[Tensor, Tensor]:
    launch = fused_pipeline()
    inputs = Inputs(
        input_ids,
        image_grid_thw,
        video_grid_thw,
        attention_mask,
        cu_seqlens,
        mm_token_type_ids,
        second_per_grid_ts if seconds is None else seconds,
        allow_unused_grids=allow_unused_grids,
        round_grid_sides=round_grid_sides,
    )
    buffers = launch.launch(inputs, MRopeSpec.from_text(spec), validate=validate)
    if validate:
        launch.invalidate(buffers)
    return buffers.position_ids, buffers.rope_deltas


@torch.library.register_fake(NAME)  # type: ignore[untyped-decorator]
def _shaped(input_ids: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    cu_seqlens, spec = others[3], others[-1]
    dtype = positions_dtype(Inputs(input_ids), MRopeSpec.from_text(spec))
    num_rows = input_ids.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return (
        input_ids.new_empty((3, *input_ids.shape), dtype=dtype),
        input_ids.new_empty((num_rows, 1), dtype=torch.int64),
    )
