"""The signatures that `get_rope_index` has in transformers, each answered from a spec.

A function here takes the model and its spec, and then what the model's own method takes: the same
names, order and defaults. A family of another signature, or of another state to be kept on its
model, is a function and an entry of `CALLS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Module

from vecrope.inputs import Inputs
from vecrope.rope_index import rope_index_of
from vecrope.spec import MRopeSpec

Call = Callable[..., tuple[Tensor, Tensor]]


def by_types(
    model: Module,  # noqa: ARG001
    spec: MRopeSpec,
    validate: bool,
    /,
    input_ids: Tensor,
    mm_token_type_ids: Tensor,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,  # noqa: ARG001 - transformers hands over all that the model is called with
) -> tuple[Tensor, Tensor]:
    """Answer as the families do that number by types alone."""
    inputs = Inputs(
        input_ids,
        image_grid_thw,
        video_grid_thw,
        _as_bool(attention_mask),
        mm_token_type_ids=_types(mm_token_type_ids),
        lenient=True,
    )
    return rope_index_of(inputs, spec, validate=validate)


def by_types_and_seconds(
    model: Module,  # noqa: ARG001
    spec: MRopeSpec,
    validate: bool,
    /,
    input_ids: Tensor,
    mm_token_type_ids: Tensor,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Tensor | Sequence[float] | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Answer as qwen2_5_vl does, whose videos are spaced in time."""
    if second_per_grid_ts is not None:
        # As with grids, those that no video asks for are left over.
        num_videos = 0 if video_grid_thw is None else video_grid_thw.shape[0]
        if len(second_per_grid_ts) > num_videos:
            second_per_grid_ts = second_per_grid_ts[:num_videos]
    inputs = Inputs(
        input_ids,
        image_grid_thw,
        video_grid_thw,
        _as_bool(attention_mask),
        mm_token_type_ids=_types(mm_token_type_ids),
        second_per_grid_ts=second_per_grid_ts,
        lenient=True,
    )
    return rope_index_of(inputs, spec, validate=validate)


# By `model_type`; every other family numbers `by_types`.
CALLS: dict[str, Call] = {"qwen2_5_vl": by_types_and_seconds}


def call_of(model_type: str) -> Call:
    """Return the function that answers for a family."""
    return CALLS.get(model_type, by_types)


def _as_bool(attention_mask: Tensor | None) -> Tensor | None:
    """Return the mask as the families' loops read it: whatever is not 0 is a token."""
    return attention_mask.bool() if isinstance(attention_mask, Tensor) else attention_mask


def _types(mm_token_type_ids: Tensor | None) -> Tensor:
    if mm_token_type_ids is None:
        raise TypeError(
            "mm_token_type_ids must be a tensor, got NoneType: pass what the processor returns by "
            "that name, with return_mm_token_type_ids=True where it does not by itself"
        )
    return mm_token_type_ids
