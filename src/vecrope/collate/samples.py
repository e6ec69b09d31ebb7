"""A sample that has been read: tensors of its tokens, and its own media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vecrope.collate import fields
from vecrope.families.rules import GlmImage, OmniRule
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec


@dataclass
class Sample:
    """One sample: T tokens, and the media that they stand for."""

    length: int  # T
    tokens: dict[str, Tensor]  # (T,) int64 each, `input_ids` among them
    media: dict[str, Any]  # grids, seconds, pixels and audio, by their names
    counts: dict[str, int]  # images, videos and audios, by their kind
    sound: Sequence[bool]  # of each video: whether it comes with its sound
    numbered: tuple[Tensor, Tensor] | None  # (3, 1, T) positions and (1, 1) deltas
    extra: dict[str, Any]

    def inputs(self, spec: MRopeSpec) -> Inputs:
        """Return the arguments by which the tokens, as a row of their own, are numbered."""
        row = {name: values[None] for name, values in self.tokens.items()}
        return inputs_of([self], row, self.media, spec)


def inputs_of(
    samples: Sequence[Sample],
    tokens: Mapping[str, Tensor],
    media: Mapping[str, Any],
    spec: MRopeSpec,
) -> Inputs:
    """Return the arguments by which samples are numbered.

    Args:
        samples: as they were read.
        tokens: of all of them, (B, T) each, or (N,) with `cu_seqlens` among them.
        media: of all of them, joined.
        spec: the family's rules.
    """
    reads = spec.arguments
    has_types = not isinstance(spec.own_rule, OmniRule | GlmImage)
    sound = [flag for sample in samples for flag in sample.sound]
    counts = [sample.counts["image"] for sample in samples]
    return Inputs(
        tokens["input_ids"],
        media.get("image_grid_thw"),
        media.get("video_grid_thw"),
        tokens.get("attention_mask"),
        tokens.get("cu_seqlens"),
        tokens.get("mm_token_type_ids") if has_types else None,
        seconds_of(media) if "second_per_grid_ts" in reads else None,
        audio_lengths(media) if "audio_seqlens" in reads else None,
        sound if any(sound) else False,
        torch.tensor(counts, device="cpu") if "images_per_sample" in reads else None,
        media.get("target_sizes"),
        media.get("target_sizes_videos"),
    )


def seconds_of(media: Mapping[str, Any]) -> Any:
    """Return the seconds of the videos, by whichever name; None where none are given."""
    return next((media[name] for name in fields.SECONDS if name in media), None)


def audio_lengths(media: Mapping[str, Any]) -> Tensor | None:
    """Return the (num_audios,) mel frames of the audio, as the omni models count them."""
    lengths: Tensor | None = media.get("audio_seqlens")
    mask: Tensor | None = media.get("feature_attention_mask")
    return mask.sum(-1) if lengths is None and mask is not None else lengths
