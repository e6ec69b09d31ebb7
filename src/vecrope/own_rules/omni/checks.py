"""What the input of an omni family must satisfy, and the messages that say where it does not."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope import checks
from vecrope.core import faults
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.omni.items import Media
from vecrope.spec import MRopeSpec

# Whole numbers from here on are not all float32.
MOST_FLOAT = 2**24


def check_media_types(inputs: Inputs, spec: MRopeSpec, rule: OmniRule) -> None:
    """Check what the shared checks of types and shapes do not know; reads no value."""
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
    if not isinstance(inputs.use_audio_in_video, bool):
        raise TypeError(f"use_audio_in_video must be a bool, got {inputs.use_audio_in_video!r}")
    lengths = inputs.audio_seqlens
    if lengths is not None:
        checks.check_integral("audio_seqlens", lengths)
        if lengths.dim() != 1:
            raise ValueError(
                f"audio_seqlens must have shape (num_audios,), got {tuple(lengths.shape)}"
            )
    if torch.compiler.is_compiling():
        return  # a graph is not to depend on the following; `check_range` has its counterpart there
    if spec.position_dtype == "float32" and inputs.input_ids.shape[-1] >= MOST_FLOAT:
        raise ValueError(
            f"{inputs.input_ids.shape[-1]} tokens in a row overflow the positions' dtype "
            "torch.float32, which tells whole numbers apart below 2**24"
        )


def check_media(inputs: Inputs, media: Media, spec: MRopeSpec, rule: OmniRule) -> None:
    """Check the values of grids, seconds and lengths, by themselves; synchronises."""
    no_grid = media.images.new_empty((0, 3))
    images = no_grid if inputs.image_grid_thw is None else inputs.image_grid_thw
    videos = no_grid if inputs.video_grid_thw is None else inputs.video_grid_thw
    faults.check_grids(images, videos, spec, lenient=inputs.lenient)
    faults.check_seconds(inputs.second_per_grid_ts, videos, spec)
    if inputs.audio_seqlens is None:
        return
    lengths = inputs.audio_seqlens.to(media.audio.device)
    for at in ((lengths != 0) & (media.audio[:-1] == 0)).nonzero()[:1, 0].tolist():
        least = 1 if rule.n_window is not None else 3
        raise ValueError(
            f"audio_seqlens must be at least {least} to give a token, or 0 for no audio, got "
            f"{int(lengths[at])} for audio {at}"
        )


def check_none_left_over(media: Media) -> None:
    """Check that there are no media, where there are no tokens."""
    found = [int((sizes > 0).sum()) for sizes in media.sizes]
    if any(found):
        raise ValueError(
            f"the grids and lengths describe {found[0]} images, {found[1]} videos and {found[2]} "
            "audios, input_ids hold none"
        )


def check_range(largest: Tensor) -> None:
    """Check that float32 tells the positions of every row apart; synchronises."""
    for row in (largest >= MOST_FLOAT).nonzero()[:1, 0].tolist():
        raise ValueError(
            f"positions must stay below 2**24 in torch.float32, got {largest[row].item():.0f} in "
            f"row {row}; does second_per_grid_ts hold seconds?"
        )
