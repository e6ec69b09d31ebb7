"""What the arguments of an omni family must be, whatever their values."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope import checks
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.omni.media import MOST_FLOAT
from vecrope.spec import MRopeSpec


def check_media_types(inputs: Inputs, spec: MRopeSpec) -> None:
    """Check what the shared checks of types and shapes do not know; reads no value."""
    rule = spec.own_rule
    assert isinstance(rule, OmniRule)
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "tokens_per_second"):
        if getattr(spec, name) is None:
            raise ValueError(f"{name} must be given for {spec.model_type!r}, got None")
    assert spec.tokens_per_second is not None
    if rule.seconds_per_chunk and spec.tokens_per_second * rule.seconds_per_chunk < 1:
        raise ValueError(
            "a chunk must hold at least one position, got tokens_per_second "
            f"{spec.tokens_per_second} times seconds_per_chunk {rule.seconds_per_chunk}"
        )
    if inputs.mm_token_type_ids is not None:
        raise ValueError(
            f"mm_token_type_ids must be None: {spec.model_type} tells its tokens by their ids"
        )
    _check_flags(inputs)
    lengths = inputs.audio_seqlens
    if lengths is not None:
        checks.check_integral("audio_seqlens", lengths)
        if lengths.dim() != 1:
            raise ValueError(
                f"audio_seqlens must have shape (num_audios,), got {tuple(lengths.shape)}"
            )
    if torch.compiler.is_compiling():
        return  # no graph depends on the length: there the largest position is checked instead
    if spec.position_dtype == "float32" and inputs.input_ids.shape[-1] >= MOST_FLOAT:
        raise ValueError(
            f"{inputs.input_ids.shape[-1]} tokens in a row overflow the positions' dtype "
            "torch.float32, which tells whole numbers apart below 2**24"
        )


def _check_flags(inputs: Inputs) -> None:
    flags = inputs.use_audio_in_video
    if isinstance(flags, bool):
        return
    if isinstance(flags, Tensor) and flags.dtype == torch.bool:
        shape = tuple(flags.shape)
    elif isinstance(flags, list | tuple) and all(isinstance(flag, bool) for flag in flags):
        shape = (len(flags),)
    else:
        raise TypeError(
            f"use_audio_in_video must be a bool, got {flags!r}; or a bool for each video"
        )
    num_videos = 0 if inputs.video_grid_thw is None else inputs.video_grid_thw.shape[0]
    if shape != (num_videos,):
        raise ValueError(
            f"use_audio_in_video must have shape ({num_videos},), one for each row of "
            f"video_grid_thw, got {shape}"
        )
