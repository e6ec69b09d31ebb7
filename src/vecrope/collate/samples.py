"""A sample that has been read: tensors of its tokens, and its own media."""

from __future__ import annotations

from dataclasses import dataclass, field
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

    tokens: dict[str, Tensor]  # (T,) int64 each, `input_ids` among them
    media: dict[str, Any]  # grids, seconds, pixels and audio, by their names
    sound: tuple[bool, ...] = ()  # of each video: whether it comes with its sound
    numbered: tuple[Tensor, Tensor] | None = None  # (3, 1, T) positions and (1, 1) deltas
    extra: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(init=False)  # images, videos and audios, by their kind

    def __post_init__(self) -> None:
        media = self.media
        self.counts = {
            kind: len(media[name]) if name in media else 0 for kind, name in fields.GRIDS.items()
        }
        self.counts["audio"] = max((len(media[n]) for n in fields.AUDIO if n in media), default=0)

    def __len__(self) -> int:
        return self.tokens["input_ids"].shape[0]

    def seconds(self) -> Any:
        """Return the seconds of the videos, by whichever name; None where none are given."""
        return next((self.media[name] for name in fields.SECONDS if name in self.media), None)

    def inputs(self, spec: MRopeSpec) -> Inputs:
        """Return the arguments by which the tokens, as a row of their own, are numbered."""
        reads = spec.arguments
        types = self.tokens.get("mm_token_type_ids")
        if types is not None:
            types = None if isinstance(spec.own_rule, OmniRule | GlmImage) else types[None]
        return Inputs(
            self.tokens["input_ids"][None],
            self.media.get("image_grid_thw"),
            self.media.get("video_grid_thw"),
            mm_token_type_ids=types,
            second_per_grid_ts=self.seconds() if "second_per_grid_ts" in reads else None,
            audio_seqlens=self.audio_lengths() if "audio_seqlens" in reads else None,
            use_audio_in_video=self.sound if any(self.sound) else False,
            images_per_sample=torch.tensor([self.counts["image"]])
            if "images_per_sample" in reads
            else None,
            target_sizes=self.media.get("target_sizes"),
            target_sizes_videos=self.media.get("target_sizes_videos"),
        )

    def audio_lengths(self) -> Tensor | None:
        """Return the (num_audios,) mel frames of the audio, as the omni models count them."""
        lengths: Tensor | None = self.media.get("audio_seqlens")
        mask = self.media.get("feature_attention_mask")
        if lengths is None and mask is not None:
            return torch.as_tensor(mask.sum(-1))
        return lengths
