"""The omni families: images, videos and audio, and videos with their sound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core.faults import invalidate
from vecrope.families.rules import OmniRule
from vecrope.forms.select import HAS_TRITON, triton_takes
from vecrope.inputs import Inputs, on_cpu
from vecrope.own_rules.omni.checks import check_media_types
from vecrope.own_rules.omni.host import number_on_host
from vecrope.own_rules.omni.media import Dtypes, read_media, seconds_of, sound_of
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
    if torch.compiler.is_compiling() or not validate:
        num_videos = 0 if inputs.video_grid_thw is None else inputs.video_grid_thw.shape[0]
        seconds, sound = inputs.second_per_grid_ts, inputs.use_audio_in_video
        answer: tuple[Tensor, Tensor] = omni_operator(
            *inputs[:5], None if seconds is None else seconds_of(inputs, spec, num_videos),
            inputs.audio_seqlens, None if sound is False else sound_of(inputs, num_videos),
            inputs.allow_unused_grids, inputs.round_grid_sides, validate, spec.as_text,
        )  # fmt: skip
        return answer
    if _is_numbered_on_device(inputs):
        media = inputs._replace(
            input_ids=inputs.input_ids[:0], attention_mask=None, cu_seqlens=None
        )
        read_media(on_cpu(media), spec, rule)
        position_ids, rope_deltas, fault = static_rope_index(inputs, spec, rule, validate=True)
        if not fault:
            return position_ids, rope_deltas
    return number_on_host(inputs, spec, rule)


def _is_numbered_on_device(inputs: Inputs) -> bool:
    return triton_takes(inputs.input_ids.device) and inputs.input_ids.numel() > 0


@torch.library.custom_op(
    "vecrope::omni_rope_index",
    mutates_args=(),
    schema="(Tensor input_ids, Tensor? image_grid_thw, Tensor? video_grid_thw, "
    "Tensor? attention_mask, Tensor? cu_seqlens, Tensor? second_per_grid_ts, "
    "Tensor? audio_seqlens, Tensor? has_sound, bool allow_unused_grids, bool round_grid_sides, "
    "bool validate, str spec) -> (Tensor, Tensor)",
    # Without Triton the batch is copied to the host.
    tags=() if HAS_TRITON else (torch.Tag.cudagraph_unsafe,),
)
def omni_operator(*given: Any) -> tuple[Tensor, Tensor]:
    """Number a batch as one node of a graph, which neither depends on values nor fuses roundings.

    A misfit has no answer: -1s, and the least int64 as deltas; on a device only with `validate`.
    """
    ids, images, videos, mask, bounds, seconds, lengths, sound, unused, rounded, check, text = given
    inputs = Inputs(
        ids, images, videos, mask, bounds, None, seconds, lengths,
        False if sound is None else sound, allow_unused_grids=unused, round_grid_sides=rounded,
    )  # fmt: skip
    spec = MRopeSpec.from_text(text)
    assert isinstance(spec.own_rule, OmniRule)
    if _is_numbered_on_device(inputs):
        *answer, fault = static_rope_index(inputs, spec, spec.own_rule, validate=check)
        return (answer[0], answer[1]) if fault is None else invalidate(fault, *answer)
    try:
        if bounds is not None:
            checks.check_cu_seqlens(bounds, ids.shape[0])
        return number_on_host(inputs, spec, spec.own_rule)
    except ValueError:
        fault = torch.ones((), dtype=torch.bool, device=ids.device)
        return invalidate(fault, *_no_answer(*given))


@omni_operator.register_fake
def _no_answer(*given: Any) -> tuple[Tensor, Tensor]:
    input_ids, bounds, spec = given[0], given[4], MRopeSpec.from_text(given[-1])
    assert isinstance(spec.own_rule, OmniRule)
    dtypes = Dtypes.of(Inputs(*given[:3]), spec, spec.own_rule)
    num_rows = input_ids.shape[0] if bounds is None else bounds.shape[0] - 1
    return (
        input_ids.new_empty((3, *input_ids.shape), dtype=dtypes.positions),
        input_ids.new_empty((num_rows, 1), dtype=dtypes.deltas),
    )
