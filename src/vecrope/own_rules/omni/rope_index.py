"""The omni families: images, videos and audio, and videos with their sound."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope.families.rules import OmniRule
from vecrope.forms.select import triton_takes
from vecrope.inputs import Inputs, on_cpu
from vecrope.own_rules.omni.checks import check_media_types
from vecrope.own_rules.omni.host import number_on_host
from vecrope.own_rules.omni.media import read_media
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
        validate: check that the tokens and the media fit; synchronises. On a device with Triton the
            media are read, and whether anything misfits. Under tracing a misfit gives -1
            everywhere, and the least int64 as deltas. On a device without Triton the batch is
            copied to the host, and the answer back, which synchronises, checked or not.

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
    tracing, input_ids = torch.compiler.is_compiling(), inputs.input_ids
    if not triton_takes(input_ids.device) or not input_ids.numel():
        if validate and not tracing:
            return number_on_host(inputs, spec, rule)
        return traced_rope_index(inputs, spec)
    if validate and not tracing:
        media = inputs._replace(input_ids=input_ids[:0], attention_mask=None, cu_seqlens=None)
        read_media(on_cpu(media), spec, rule)
    *answer, fault = static_rope_index(inputs, spec, rule, validate=validate)
    position_ids, rope_deltas = answer
    if fault is None:
        return position_ids, rope_deltas
    if tracing:
        least = torch.iinfo(torch.int64).min
        return torch.where(fault, -1, position_ids), torch.where(fault, least, rope_deltas)
    return number_on_host(inputs, spec, rule) if fault else (position_ids, rope_deltas)
