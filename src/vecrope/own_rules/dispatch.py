"""The implementation of each family with a rule of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vecrope.families.rules import Bailing, GlmImage, Hunyuan, Isaac, MiniCPMV47, OmniRule, OwnRule
from vecrope.inputs import Inputs, on_cpu
from vecrope.own_rules.bailing import bailing_rope_index
from vecrope.own_rules.glm_image.prompt import glm_image_rope_index
from vecrope.own_rules.hunyuan_vl import hunyuan_rope_index
from vecrope.own_rules.isaac import isaac_rope_index
from vecrope.own_rules.minicpmv4_7.rope_index import minicpmv4_7_rope_index
from vecrope.own_rules.omni.rope_index import omni_rope_index
from vecrope.spec import MRopeSpec

_IMPLEMENTATIONS: dict[type[OwnRule], Callable[..., tuple[Tensor, Tensor]]] = {
    Bailing: bailing_rope_index,
    MiniCPMV47: minicpmv4_7_rope_index,
    GlmImage: glm_image_rope_index,
    Hunyuan: hunyuan_rope_index,
    Isaac: isaac_rope_index,
    OmniRule: omni_rope_index,
}
# Up to so many tokens a checked call on a device, of a batch without a mask, is answered on the
# host: the copies take less time than the launches of a rule, and it waits for the device in any
# case. For three positions of more tokens torch starts threads.
_MOST_ON_HOST = 8192


def own_rope_index(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> tuple[Tensor, Tensor]:
    """Return the positions and deltas of a family with a rule of its own.

    Args:
        inputs: types, shapes and the mask's values have been checked.
        spec: with an `own_rule`.
        validate: check the values of the rest.
    """
    assert spec.own_rule is not None
    implementation, ids = _IMPLEMENTATIONS[type(spec.own_rule)], inputs.input_ids
    few = ids.numel() <= _MOST_ON_HOST and inputs.attention_mask is None
    copied = validate and few and not ids.is_cpu and type(ids) is Tensor
    if not copied or torch.compiler.is_compiling():
        return implementation(inputs, spec, validate=validate)
    position_ids, rope_deltas = implementation(on_cpu(inputs), spec, validate=True)
    return position_ids.to(ids.device), rope_deltas.to(ids.device)
