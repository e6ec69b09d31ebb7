"""What the arguments of an omni family must be, whatever their values."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope import checks
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.omni.media import MOST_FLOAT, chunk_length
from vecrope.spec import MRopeSpec


def check_media_types(inputs: Inputs, spec: MRopeSpec, rule: OmniRule) -> None:
    """Check what the shared checks of types and shapes do not know; reads no value."""
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "tokens_per_second"):
        if getattr(spec, name) is None:
            raise ValueError(f"{name} must be given for {spec.model_type!r}, got None")
    if rule.seconds_per_chunk and not chunk_length(spec, rule):
        raise ValueError(
            "a chunk must hold at least one position, got tokens_per_second "
            f"{spec.tokens_per_second} times seconds_per_chunk {rule.seconds_per_chunk}"
        )
    if inputs.mm_token_type_ids is not None:
        raise ValueError(
            f"mm_token_type_ids must be None: {spec.model_type} tells its tokens by their ids"
        )
    flags, videos = inputs.use_audio_in_video, inputs.video_grid_thw
    if not isinstance(flags, bool):
        is_tensor = isinstance(flags, Tensor) and flags.dtype == torch.bool
        if not is_tensor and not (
            isinstance(flags, list | tuple) and all(isinstance(flag, bool) for flag in flags)
        ):
            raise TypeError(
                f"use_audio_in_video must be a bool, got {flags!r}; or a bool for each video"
            )
        checks.check_one_per_video(
            "use_audio_in_video", flags, 0 if videos is None else len(videos)
        )
    if (lengths := inputs.audio_seqlens) is not None:
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
