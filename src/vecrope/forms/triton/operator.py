"""The kernels as one operator of torch, for compiled graphs; imported by the first of them.

A compiler takes the operator apart, and allocates and launches as it does for its own kernels;
where a graph is run as it is, the operator launches them. It takes what distinguishes a family as
one text, so that a graph that holds it can be cached and loaded by another process.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vecrope.forms.triton import launch
from vecrope.inputs import Inputs, positions_dtype
from vecrope.spec import MRopeSpec

# The operator is given it, so that no graph is taken from a cache that was compiled of others.
_SOURCES = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
_DIGEST = sha256(_SOURCES).hexdigest()


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
        _DIGEST,
    )
    return answer


@torch.library.triton_op("vecrope::rope_index", mutates_args=())
def _rope_index(
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
    _digest: str,
) -> tuple[Tensor, Tensor]:
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
    buffers = launch.launch(inputs, MRopeSpec.from_text(spec), validate=validate, traced=True)
    if validate:
        launch.invalidate(buffers)
    return buffers.position_ids, buffers.rope_deltas


@_rope_index.register_fake  # type: ignore[untyped-decorator]
def _shaped(input_ids: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    cu_seqlens, spec = others[3], others[-2]
    dtype = positions_dtype(Inputs(input_ids), MRopeSpec.from_text(spec))
    num_rows = input_ids.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return (
        input_ids.new_empty((3, *input_ids.shape), dtype=dtype),
        input_ids.new_empty((num_rows, 1), dtype=torch.int64),
    )
