"""The implementation of each family with a rule of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.faults import invalidate, unsound
from vecrope.families.rules import Bailing, GlmImage, Hunyuan, Isaac, MiniCPMV47, OmniRule, OwnRule
from vecrope.forms.eager.rope_index import as_column
from vecrope.inputs import Inputs, on_cpu, on_device, positions_dtype
from vecrope.own_rules.bailing import bailing_rope_index, lay_out_bailing
from vecrope.own_rules.common import (
    OPERANDS,
    Tokens,
    deltas_dtype,
    from_operands,
    operands_of,
    unmasked_tokens,
)
from vecrope.own_rules.glm_image.host import lay_out_glm_image
from vecrope.own_rules.glm_image.prompt import glm_image_rope_index
from vecrope.own_rules.hunyuan_vl import hunyuan_rope_index, lay_out_hunyuan
from vecrope.own_rules.isaac import isaac_rope_index, lay_out_isaac
from vecrope.own_rules.layout import Layout
from vecrope.own_rules.minicpmv4_7.host import lay_out_minicpmv4_7
from vecrope.own_rules.minicpmv4_7.sizes import check_shapes
from vecrope.own_rules.omni.layout import lay_out_omni
from vecrope.own_rules.omni.media import check_media_types, omni_dtypes
from vecrope.spec import MRopeSpec

# By the values of a batch on a CPU, which are checked.
_LAYOUTS: dict[type[OwnRule], Callable[[Tokens, MRopeSpec], Layout]] = {
    Bailing: lay_out_bailing,
    MiniCPMV47: lay_out_minicpmv4_7,
    GlmImage: lay_out_glm_image,
    Hunyuan: lay_out_hunyuan,
    Isaac: lay_out_isaac,
    OmniRule: lay_out_omni,
}
# On any device and by no value, of at least one token; with `validate` a misfit is invalidated.
# In the other families each item follows from the one before it: the host walks over them.
_STATIC: dict[type[OwnRule], Callable[..., tuple[Tensor, Tensor]]] = {
    Bailing: bailing_rope_index,
    GlmImage: glm_image_rope_index,
    Hunyuan: hunyuan_rope_index,
    Isaac: isaac_rope_index,
}


def lay_out(inputs: Inputs, spec: MRopeSpec) -> Layout:
    """Return what a batch holds.

    Args:
        inputs: on a CPU; types, shapes and the mask's values have been checked.
        spec: with an `own_rule`.

    Raises:
        TypeError: for media of the wrong type or dtype.
        ValueError: for the first thing that does not fit.
    """
    _check_media(inputs, spec)
    lay_out_by_rule = _LAYOUTS[type(spec.own_rule)]  # type: ignore[index]
    return lay_out_by_rule(unmasked_tokens(inputs), spec)


def _check_media(inputs: Inputs, spec: MRopeSpec) -> None:
    """Check types and shapes of what the other families do not have; reads no value."""
    if isinstance(spec.own_rule, OmniRule):
        check_media_types(inputs, spec, spec.own_rule)
    elif isinstance(spec.own_rule, MiniCPMV47):
        check_shapes(inputs, spec)


def own_rope_index(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> tuple[Tensor, Tensor]:
    """Return the positions and deltas of a family with a rule of its own.

    Args:
        inputs: types, shapes and the mask's values have been checked.
        spec: with an `own_rule`.
        validate: check the values of the rest, which are on a CPU where something can be raised.
            Without it the host waits for the device of the ids once where no form for devices is.
    """
    rule, ids = type(spec.own_rule), inputs.input_ids
    if not validate or torch.compiler.is_compiling():
        _check_media(inputs, spec)
        if not ids.numel():
            return _zeros(inputs, spec)
        if (static := _STATIC.get(rule)) is not None:  # type: ignore[arg-type]
            numbered = static(inputs, spec, validate=validate)
            return invalidate(unsound(inputs, spec), *numbered) if validate else numbered
        answer: tuple[Tensor, Tensor] = numbered_on_host(*operands_of(inputs, spec))
        return answer
    return number_layout(lay_out(inputs, spec), inputs, spec)


def number_layout(layout: Layout, inputs: Inputs, spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    """Return the positions and deltas of what `lay_out` returned of `inputs`."""
    dtype, of_deltas, padding = answer_dtypes(inputs, spec)
    positions = layout.positions()
    if positions.dtype != dtype:
        positions = positions.to(dtype)
    positions = layout.tokens.in_batch(positions, padding)
    position_ids = positions.view(positions.shape[0], *inputs.input_ids.shape)
    return position_ids, as_column(layout.deltas(spec), of_deltas)


def answer_dtypes(inputs: Inputs, spec: MRopeSpec) -> tuple[torch.dtype, torch.dtype, int]:
    """Return the dtypes of the positions and of the deltas, and the position of masked tokens."""
    if isinstance(spec.own_rule, OmniRule):
        of_positions, of_deltas, padding = omni_dtypes(inputs, spec, spec.own_rule)
        return of_positions, of_deltas, spec.padding_value if padding is None else padding
    return positions_dtype(inputs, spec), deltas_dtype(inputs, spec), spec.padding_value


@torch.library.custom_op(
    "vecrope::own_rope_index",
    mutates_args=(),
    schema=OPERANDS,
    tags=(torch.Tag.cudagraph_unsafe,),
)
def numbered_on_host(*operands: Any) -> tuple[Tensor, Tensor]:
    """Return what a checked call does, or for a misfit -1s and the least int64 as deltas.

    It waits for the device once, for which no graph of a device can capture it.
    """
    inputs, spec = from_operands(operands)
    device = inputs.input_ids.device
    inputs = on_cpu(inputs)
    try:
        if inputs.cu_seqlens is not None:
            checks.check_cu_seqlens(inputs.cu_seqlens, len(inputs.input_ids))
        answer = own_rope_index(inputs, spec, validate=True)
    except ValueError:
        fault = torch.ones((), dtype=torch.bool, device=device)
        return invalidate(fault, *_unnumbered(*operands))
    return on_device(answer, device)


@numbered_on_host.register_fake
def _unnumbered(*operands: Any) -> tuple[Tensor, Tensor]:
    return _zeros(*from_operands(operands))


def _zeros(inputs: Inputs, spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    """Return positions (A, B, T) or (A, N), and deltas (B, 1), of 0."""
    rule, ids, bounds = spec.own_rule, inputs.input_ids, inputs.cu_seqlens
    num_axes = rule.num_axes if isinstance(rule, Hunyuan) else 3
    num_rows = ids.shape[0] if bounds is None else bounds.shape[0] - 1
    of_positions, of_deltas, _ = answer_dtypes(inputs, spec)
    return (
        ids.new_zeros((num_axes, *ids.shape), dtype=of_positions),
        ids.new_zeros((num_rows, 1), dtype=of_deltas),
    )
