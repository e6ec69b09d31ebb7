"""The signatures that `get_rope_index` has in transformers, each answered from a spec.

A function here takes the model and its spec, and then what the model's own method takes: the same
names, order and defaults. A family of another signature, or of another state to be kept on its
model, is a function here and an entry of `rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from vecrope.families.rules import MiniCPMV47
from vecrope.inputs import Inputs
from vecrope.integrations.arguments import answer, as_grids, as_inputs, ones_of
from vecrope.own_rules.glm_image.decode import get_decode_position_ids
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
    inputs = as_inputs(
        input_ids,
        image_grid_thw,
        video_grid_thw,
        attention_mask=_as_bool(attention_mask),
        mm_token_type_ids=_types(mm_token_type_ids),
    )
    return answer(inputs, spec, validate=validate)


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
    inputs = as_inputs(
        input_ids,
        image_grid_thw,
        video_grid_thw,
        second_per_grid_ts,
        attention_mask=_as_bool(attention_mask),
        mm_token_type_ids=_types(mm_token_type_ids),
    )
    return answer(inputs, spec, validate=validate)


def by_types_of_images(
    model: Module,  # noqa: ARG001
    spec: MRopeSpec,
    validate: bool,
    /,
    input_ids: Tensor,
    mm_token_type_ids: Tensor,
    image_grid_thw: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Answer as hunyuan_vl does, which has no videos, and itself refuses grids left over."""
    inputs = as_inputs(
        input_ids,
        image_grid_thw,
        attention_mask=_as_bool(attention_mask),
        mm_token_type_ids=_types(mm_token_type_ids),
    )
    return answer(inputs, spec, validate=validate)


def by_types_of_slices(
    model: Module,  # noqa: ARG001
    spec: MRopeSpec,
    validate: bool,
    /,
    input_ids: Tensor,
    mm_token_type_ids: Tensor | None = None,
    target_sizes: Tensor | None = None,
    target_sizes_videos: Tensor | None = None,
    downsample_mode: str | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Answer as minicpmv4_7 does, whose mode of a call goes before that of its configuration."""
    assert isinstance(spec.own_rule, MiniCPMV47)
    if downsample_mode:
        rule = replace(spec.own_rule, downsample_mode=downsample_mode)  # type: ignore[arg-type]
        spec = replace(spec, own_rule=rule)
    inputs = as_inputs(
        input_ids,
        attention_mask=attention_mask,
        mm_token_type_ids=_types(mm_token_type_ids),
        target_sizes=target_sizes,
        target_sizes_videos=target_sizes_videos,
    )
    return answer(inputs, spec, validate=validate)


# The size of what it keeps depends on values, of which a graph has none.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def by_markers_with_targets(
    model: Module,
    spec: MRopeSpec,
    validate: bool,
    /,
    input_ids: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    images_per_sample: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Answer as glm_image does, and keep on the model where what it generates will stand.

    That table has as many columns as the grids say, so that their values are read in any case.
    """
    attention_mask = ones_of(attention_mask)
    if isinstance(input_ids, Tensor) and isinstance(attention_mask, Tensor):
        # transformers reads no mask of another length.
        fits = attention_mask.shape[1:] == input_ids.shape[1:]
        attention_mask = attention_mask if fits else None
    image_grid_thw = as_grids(image_grid_thw)
    inputs = Inputs(
        input_ids,  # type: ignore[arg-type]
        image_grid_thw,
        attention_mask=attention_mask,
        images_per_sample=images_per_sample if image_grid_thw is not None else None,
    )
    position_ids, rope_deltas = rope_index_of(inputs, spec, validate=validate)
    decode_position_ids = None
    if image_grid_thw is not None and image_grid_thw.shape[0]:
        decode_position_ids, lengths = get_decode_position_ids(
            inputs.input_ids,
            spec,
            image_grid_thw=image_grid_thw,
            images_per_sample=inputs.images_per_sample,
            attention_mask=attention_mask,
        )
        # Rows without any grid have no part in it.
        decode_position_ids = decode_position_ids[lengths > 0]
    keeps: Any = model
    keeps._prefill_len = position_ids.shape[2]
    keeps._cached_decode_position_ids = decode_position_ids
    return position_ids, rope_deltas


def by_ids_with_audio(
    model: Module,  # noqa: ARG001
    spec: MRopeSpec,
    validate: bool,
    /,
    input_ids: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    attention_mask: Tensor | None = None,
    use_audio_in_video: bool = False,
    audio_seqlens: Tensor | None = None,
    second_per_grids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Answer as the omni families do, to which without any grid every token is text."""
    has_grids = image_grid_thw is not None or video_grid_thw is not None
    inputs = as_inputs(
        input_ids,
        image_grid_thw,
        video_grid_thw,
        second_per_grids,
        attention_mask=ones_of(attention_mask),
        audio_seqlens=audio_seqlens if has_grids else None,
        use_audio_in_video=has_grids and bool(use_audio_in_video),
    )
    return answer(inputs, spec, validate=validate)


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
