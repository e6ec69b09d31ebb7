"""The implementation of each family with a rule of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.faults import invalidate
from vecrope.families.rules import Bailing, GlmImage, Hunyuan, Isaac, MiniCPMV47, OmniRule, OwnRule
from vecrope.forms.eager.rope_index import as_column
from vecrope.forms.select import triton_takes
from vecrope.inputs import Inputs, on_cpu
from vecrope.own_rules.bailing import bailing_rope_index, lay_out_bailing
from vecrope.own_rules.common import Tokens, deltas_dtype, positions_dtype, unmasked_tokens
from vecrope.own_rules.glm_image.host import lay_out_glm_image
from vecrope.own_rules.glm_image.prompt import glm_image_rope_index
from vecrope.own_rules.hunyuan_vl import hunyuan_rope_index, lay_out_hunyuan
from vecrope.own_rules.isaac import isaac_rope_index, lay_out_isaac
from vecrope.own_rules.layout import Layout
from vecrope.own_rules.minicpmv4_7.host import lay_out_minicpmv4_7
from vecrope.own_rules.minicpmv4_7.sizes import check_shapes
from vecrope.own_rules.minicpmv4_7.static import minicpmv4_7_rope_index
from vecrope.own_rules.omni.rope_index import omni_rope_index
from vecrope.spec import MRopeSpec

# By the values of a batch on a CPU, which are checked: of every family but omni.
_LAYOUTS: dict[type[OwnRule], Callable[[Tokens, MRopeSpec], Layout]] = {
    Bailing: lay_out_bailing,
    MiniCPMV47: lay_out_minicpmv4_7,
    GlmImage: lay_out_glm_image,
    Hunyuan: lay_out_hunyuan,
    Isaac: lay_out_isaac,
}
# On any device and by no value, of at least one token; with `validate` a misfit is invalidated.
_STATIC: dict[type[OwnRule], Callable[..., tuple[Tensor, Tensor]]] = {
    Bailing: bailing_rope_index,
    GlmImage: glm_image_rope_index,
    Hunyuan: hunyuan_rope_index,
    Isaac: isaac_rope_index,
}


def lay_out(inputs: Inputs, spec: MRopeSpec) -> Layout | None:
    """Return what a batch holds; None for an omni family.

    Args:
        inputs: on a CPU; types, shapes and the mask's values have been checked.
        spec: with an `own_rule`.

    Raises:
        ValueError: for the first thing that does not fit.
    """
    layout_of = _LAYOUTS.get(type(spec.own_rule))  # type: ignore[arg-type]
    return None if layout_of is None else layout_of(unmasked_tokens(inputs), spec)


def own_rope_index(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> tuple[Tensor, Tensor]:
    """Return the positions and deltas of a family with a rule of its own.

    Args:
        inputs: types, shapes and the mask's values have been checked.
        spec: with an `own_rule`.
        validate: check the values of the rest.
    """
    rule, ids = spec.own_rule, inputs.input_ids
    if isinstance(rule, OmniRule):
        return omni_rope_index(inputs, spec, validate=validate)
    if not validate or torch.compiler.is_compiling():
        if isinstance(rule, MiniCPMV47):
            check_shapes(inputs, spec)
        if not ids.numel():
            return _zeros(inputs, spec)
        if not isinstance(rule, MiniCPMV47):
            return _STATIC[type(rule)](inputs, spec, validate=validate)  # type: ignore[index]
        # Its program finds no fault.
        if not validate and triton_takes(ids.device):
            return minicpmv4_7_rope_index(inputs, spec)
        answer: tuple[Tensor, Tensor] = _numbered_on_host(
            inputs.input_ids, inputs.attention_mask, inputs.cu_seqlens, inputs.mm_token_type_ids,
            inputs.target_sizes, inputs.target_sizes_videos, inputs.allow_unused_grids,
            inputs.round_grid_sides, spec.as_text,
        )  # fmt: skip
        return answer
    if ids.is_cpu:
        layout = lay_out(inputs, spec)
        assert layout is not None
        return number_layout(layout, inputs, spec)
    # It waits for the device in any case, and the copies take less time than the launches.
    position_ids, rope_deltas = own_rope_index(on_cpu(inputs), spec, validate=True)
    return position_ids.to(ids.device), rope_deltas.to(ids.device)


def number_layout(layout: Layout, inputs: Inputs, spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    """Return the positions and deltas of what `lay_out` returned of `inputs`."""
    positions = layout.positions().to(positions_dtype(inputs, spec))
    positions = layout.tokens.in_batch(positions, spec.padding_value)
    deltas = layout.deltas(spec)
    # There is no buffer of no numbers.
    rope_deltas = as_column(deltas or (0,))[: len(deltas)].to(deltas_dtype(inputs, spec))
    return positions.view(len(positions), *inputs.input_ids.shape), rope_deltas


@torch.library.custom_op(
    "vecrope::own_rope_index",
    mutates_args=(),
    schema="(Tensor input_ids, Tensor? attention_mask, Tensor? cu_seqlens, "
    "Tensor? mm_token_type_ids, Tensor? target_sizes, Tensor? target_sizes_videos, "
    "bool allow_unused_grids, bool round_grid_sides, str spec) -> (Tensor, Tensor)",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _numbered_on_host(*given: Any) -> tuple[Tensor, Tensor]:
    """Return what a checked call does, or for a misfit -1s and the least int64 as deltas."""
    inputs, spec, device = (
        on_cpu(_inputs_of(*given)),
        MRopeSpec.from_text(given[-1]),
        given[0].device,
    )
    try:
        if inputs.cu_seqlens is not None:
            checks.check_cu_seqlens(inputs.cu_seqlens, len(inputs.input_ids))
        position_ids, rope_deltas = own_rope_index(inputs, spec, validate=True)
    except ValueError:
        fault = torch.ones((), dtype=torch.bool, device=device)
        return invalidate(fault, *_zeros(_inputs_of(*given), MRopeSpec.from_text(given[-1])))
    return position_ids.to(device), rope_deltas.to(device)


@_numbered_on_host.register_fake
def _unnumbered(*given: Any) -> tuple[Tensor, Tensor]:
    return _zeros(_inputs_of(*given), MRopeSpec.from_text(given[-1]))


def _zeros(inputs: Inputs, spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    """Return positions and deltas of 0, of the shapes and dtypes of an answer."""
    ids, bounds, rule = inputs.input_ids, inputs.cu_seqlens, spec.own_rule
    num_rows = ids.shape[0] if bounds is None else bounds.shape[0] - 1
    num_axes = rule.num_axes if isinstance(rule, Hunyuan) else 3
    return (
        ids.new_zeros((num_axes, *ids.shape), dtype=positions_dtype(inputs, spec)),
        ids.new_zeros((num_rows, 1), dtype=deltas_dtype(inputs, spec)),
    )


def _inputs_of(
    ids: Tensor,
    mask: Tensor | None,
    bounds: Tensor | None,
    types: Tensor | None,
    sizes: Tensor | None,
    video_sizes: Tensor | None,
    unused: bool,
    rounded: bool,
    _: str,
) -> Inputs:
    return Inputs(
        ids, None, None, mask, bounds, types, target_sizes=sizes, target_sizes_videos=video_sizes,
        allow_unused_grids=unused, round_grid_sides=rounded,
    )  # fmt: skip
