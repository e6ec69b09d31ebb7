"""The implementation of each family with a rule of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.faults import invalidate
from vecrope.families.rules import Bailing, GlmImage, Hunyuan, Isaac, MiniCPMV47, OmniRule, OwnRule
from vecrope.forms.select import triton_takes
from vecrope.inputs import Inputs, on_cpu, positions_dtype
from vecrope.own_rules.bailing import bailing_rope_index, lay_out_bailing
from vecrope.own_rules.common import (
    OPERANDS,
    Tokens,
    deltas_dtype,
    from_operands,
    operands_of,
    unmasked_tokens,
    zero_answer,
)
from vecrope.own_rules.glm_image.host import lay_out_glm_image
from vecrope.own_rules.glm_image.prompt import glm_image_rope_index
from vecrope.own_rules.hunyuan_vl import hunyuan_rope_index, lay_out_hunyuan
from vecrope.own_rules.isaac import isaac_rope_index, lay_out_isaac
from vecrope.own_rules.layout import Layout
from vecrope.own_rules.minicpmv4_7.host import lay_out_minicpmv4_7
from vecrope.own_rules.minicpmv4_7.sizes import check_shapes
from vecrope.own_rules.omni.checks import check_media_types
from vecrope.own_rules.omni.layout import lay_out_omni
from vecrope.own_rules.omni.media import Dtypes
from vecrope.own_rules.omni.rope_index import omni_rope_index
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
_STATIC: dict[type[OwnRule], Callable[..., tuple[Tensor, Tensor]]] = {
    Bailing: bailing_rope_index,
    GlmImage: glm_image_rope_index,
    Hunyuan: hunyuan_rope_index,
    Isaac: isaac_rope_index,
}
# Likewise, on a device with Triton. Each item follows from the one before it, over which a program
# walks; it finds no fault.
_BY_ITEMS: dict[type[OwnRule], Callable[[Inputs, MRopeSpec], tuple[Tensor, Tensor]]] = {
    OmniRule: omni_rope_index,
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
        check_media_types(inputs, spec)
    elif isinstance(spec.own_rule, MiniCPMV47):
        check_shapes(inputs, spec)


def own_rope_index(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> tuple[Tensor, Tensor]:
    """Return the positions and deltas of a family with a rule of its own.

    Args:
        inputs: types, shapes and the mask's values have been checked.
        spec: with an `own_rule`.
        validate: check the values of the rest.
    """
    rule, ids = type(spec.own_rule), inputs.input_ids
    if not validate or torch.compiler.is_compiling():
        _check_media(inputs, spec)
        if not ids.numel():
            return _zeros(inputs, spec)
        if (static := _STATIC.get(rule)) is not None:  # type: ignore[arg-type]
            return static(inputs, spec, validate=validate)
        by_items = _BY_ITEMS.get(rule)  # type: ignore[arg-type]
        if by_items is not None and not validate and triton_takes(ids.device):
            return by_items(inputs, spec)
        answer: tuple[Tensor, Tensor] = numbered_on_host(*operands_of(inputs, spec))
        return answer
    if ids.is_cpu:
        return number_layout(lay_out(inputs, spec), inputs, spec)
    # It waits for the device in any case, and the copies take less time than the launches.
    position_ids, rope_deltas = own_rope_index(on_cpu(inputs), spec, validate=True)
    return position_ids.to(ids.device), rope_deltas.to(ids.device)


def number_layout(layout: Layout, inputs: Inputs, spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    """Return the positions and deltas of what `lay_out` returned of `inputs`."""
    dtype, of_deltas, padding = answer_dtypes(inputs, spec)
    positions = layout.tokens.in_batch(layout.positions().to(dtype), padding)
    rope_deltas = torch.tensor(layout.deltas(spec), dtype=of_deltas, device="cpu").view(-1, 1)
    return positions.view(len(positions), *inputs.input_ids.shape), rope_deltas


def answer_dtypes(inputs: Inputs, spec: MRopeSpec) -> tuple[torch.dtype, torch.dtype, int]:
    """Return the dtypes of the positions and of the deltas, and the position of masked tokens."""
    if isinstance(spec.own_rule, OmniRule):
        return Dtypes.of(inputs, spec, spec.own_rule)[:3]
    return positions_dtype(inputs, spec), deltas_dtype(inputs, spec), spec.padding_value


@torch.library.custom_op(
    "vecrope::own_rope_index",
    mutates_args=(),
    schema=OPERANDS,
    tags=(torch.Tag.cudagraph_unsafe,),
)
def numbered_on_host(*operands: Any) -> tuple[Tensor, Tensor]:
    """Return what a checked call does, or for a misfit -1s and the least int64 as deltas."""
    inputs, spec = from_operands(operands)
    device = inputs.input_ids.device
    inputs = on_cpu(inputs)
    try:
        if inputs.cu_seqlens is not None:
            checks.check_cu_seqlens(inputs.cu_seqlens, len(inputs.input_ids))
        position_ids, rope_deltas = own_rope_index(inputs, spec, validate=True)
    except ValueError:
        fault = torch.ones((), dtype=torch.bool, device=device)
        return invalidate(fault, *_unnumbered(*operands))
    return position_ids.to(device), rope_deltas.to(device)


@numbered_on_host.register_fake
def _unnumbered(*operands: Any) -> tuple[Tensor, Tensor]:
    return _zeros(*from_operands(operands))


def _zeros(inputs: Inputs, spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    rule = spec.own_rule
    num_axes = rule.num_axes if isinstance(rule, Hunyuan) else 3
    return zero_answer(inputs, *answer_dtypes(inputs, spec)[:2], num_axes)
