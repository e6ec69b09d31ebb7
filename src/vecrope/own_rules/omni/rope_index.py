"""The omni families: images, videos and audio, and videos with their sound."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope.families.rules import OmniRule
from vecrope.forms.select import triton_takes
from vecrope.inputs import Inputs
from vecrope.own_rules.omni.checks import check_media_types
from vecrope.own_rules.omni.host import number_on_host
from vecrope.own_rules.omni.operators import traced_rope_index
from vecrope.own_rules.omni.static import static_rope_index
from vecrope.spec import MRopeSpec


def omni_rope_index(inputs: Inputs, spec: MRopeSpec, *, validate: bool) -> tuple[Tensor, Tensor]:
    """Return the M-RoPE position ids and deltas of a batch of an omni family.

    Text and audio count up on all three axes, images and videos read row and column off their
    grids, frames are spaced in time, and the next token follows the largest position so far. The
    tokens of a video with its sound take turns, in an order that follows from the times alone;
    the markers behind it follow the last piece of video or sound.

    Where positions are float32 (qwen3_omni_moe) each sum is rounded, so that the items of the batch
    are gone through one after the other; the tokens are not.

    Args:
        inputs: types, shapes and the mask's values have been checked.
        spec: with an `OmniRule`.
        validate: check that the tokens and the media fit. A batch on another device is copied to
            the host for that, and the answer back, which synchronises, traced or not. Under tracing
            a misfit gives -1 everywhere, and the least int64 as deltas. False: on a device for
            which Triton compiles no value is read; without Triton the host answers there, too.

    Returns:
        `position_ids` (3, B, T) or (3, N), of `spec.position_dtype`, or of `text_dtype` in a batch
        without any grid; `rope_deltas` (B, 1) float32 where positions are, else int64.

    Raises:
        TypeError: for a medium of the wrong type or dtype.
        ValueError: for media that are missing, of the wrong shape, or do not fit the tokens.

    The rules are those of transformers' `get_rope_index` of both families, of SGLang's
    `get_rope_index_qwen3_omni` and of vLLM's `get_mrope_input_positions` of both.
    """
    rule = spec.own_rule
    assert isinstance(rule, OmniRule)
    check_media_types(inputs, spec, rule)
    if validate and not torch.compiler.is_compiling():
        return number_on_host(inputs, spec, rule)
    if not validate and triton_takes(inputs.input_ids.device) and inputs.input_ids.numel():
        return static_rope_index(inputs, spec, rule)
    return traced_rope_index(inputs, spec)
