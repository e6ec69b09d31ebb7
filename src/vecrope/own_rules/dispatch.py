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
from vecrope.own_rules.common import Tokens, unmasked_tokens
from vecrope.own_rules.glm_image.host import lay_out_glm_image
from vecrope.own_rules.glm_image.prompt import glm_image_rope_index
from vecrope.own_rules.hunyuan_vl import hunyuan_rope_index, lay_out_hunyuan
from vecrope.own_rules.isaac import isaac_rope_index, lay_out_isaac
from vecrope.own_rules.layout import Layout
from vecrope.own_rules.minicpmv4_7.host import lay_out_minicpmv4_7
from vecrope.own_rules.minicpmv4_7.rope_index import minicpmv4_7_rope_index
from vecrope.own_rules.minicpmv4_7.sizes import check_shapes
from vecrope.own_rules.omni.rope_index import omni_rope_index
from vecrope.spec import MRopeSpec

# By the values of a batch on a CPU: of every family but omni.
_LAYOUTS: dict[type[OwnRule], Callable[[Tokens, MRopeSpec], Layout | None]] = {
    Bailing: lay_out_bailing,
    MiniCPMV47: lay_out_minicpmv4_7,
    GlmImage: lay_out_glm_image,
    Hunyuan: lay_out_hunyuan,
    Isaac: lay_out_isaac,
}
# On any device, and by no value unless it is to be checked. Omni reads values where it may.
_IMPLEMENTATIONS: dict[type[OwnRule], Callable[..., tuple[Tensor, Tensor]]] = {
    Bailing: bailing_rope_index,
    MiniCPMV47: minicpmv4_7_rope_index,
    GlmImage: glm_image_rope_index,
    Hunyuan: hunyuan_rope_index,
    Isaac: isaac_rope_index,
    OmniRule: omni_rope_index,
}
_INT64_DELTAS = (Isaac, MiniCPMV47)
# Up to so many tokens a checked call on a device is answered on the host: the copies take less time
# than the launches of a rule, and it waits for the device in any case. For three positions of more
# tokens torch starts threads.
_MOST_ON_HOST = 8192


def lay_out(inputs: Inputs, spec: MRopeSpec) -> Layout | None:
    """Return what a batch holds; None for an omni family, and where something does not fit.

    Args:
        inputs: on a CPU; types, shapes and the mask's values have been checked.
        spec: with an `own_rule`.

    Raises:
        ValueError: where what does not fit is named at once (minicpmv4_7).
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
    implementation = _IMPLEMENTATIONS[type(rule)]  # type: ignore[index]
    if not validate or torch.compiler.is_compiling():
        if isinstance(rule, MiniCPMV47) and not triton_takes(ids.device):
            check_shapes(inputs, spec)
            answer: tuple[Tensor, Tensor] = _numbered_on_host(
                inputs.input_ids, inputs.attention_mask, inputs.cu_seqlens,
                inputs.mm_token_type_ids, inputs.target_sizes, inputs.target_sizes_videos,
                inputs.allow_unused_grids, inputs.round_grid_sides, spec.as_text,
            )  # fmt: skip
            return answer
        return implementation(inputs, spec, validate=validate)
    few = ids.numel() <= _MOST_ON_HOST or isinstance(rule, MiniCPMV47)
    if few and not ids.is_cpu and type(ids) is Tensor:
        position_ids, rope_deltas = own_rope_index(on_cpu(inputs), spec, validate=True)
        return position_ids.to(ids.device), rope_deltas.to(ids.device)
    layout = lay_out(inputs, spec) if ids.is_cpu else None
    if layout is not None:
        return number_layout(layout, inputs, spec)
    # What does not fit is named here.
    return implementation(inputs, spec, validate=True)


def number_layout(layout: Layout, inputs: Inputs, spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    """Return the positions and deltas of what `lay_out` returned of `inputs`."""
    dtype = positions_dtype(inputs, spec)
    positions = layout.tokens.in_batch(layout.positions().to(dtype), spec.padding_value)
    if isinstance(spec.own_rule, _INT64_DELTAS):
        dtype = torch.int64
    rope_deltas = torch.tensor(layout.deltas(spec), dtype=dtype, device="cpu").view(-1, 1)
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
        return invalidate(fault, *_unnumbered(*given))
    return position_ids.to(device), rope_deltas.to(device)


@_numbered_on_host.register_fake
def _unnumbered(*given: Any) -> tuple[Tensor, Tensor]:
    inputs = _inputs_of(*given)
    ids, bounds = inputs.input_ids, inputs.cu_seqlens
    num_rows = ids.shape[0] if bounds is None else bounds.shape[0] - 1
    dtype = positions_dtype(inputs, MRopeSpec.from_text(given[-1]))
    return (
        ids.new_empty((3, *ids.shape), dtype=dtype),
        ids.new_empty((num_rows, 1), dtype=torch.int64),
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
