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
    sound: Sequence[bool]  # of each video: whether it comes with its sound; () if none does
    numbered: tuple[Tensor, Tensor] | None  # (3, 1, T) positions and (1, 1) deltas
    extra: dict[str, Any]

    def inputs(self, spec: MRopeSpec, row: Mapping[str, Tensor] | None = None) -> Inputs:
        """Return the arguments by which the tokens, or the padded `row` of them, are numbered."""
        if row is None:
            row = {name: values[None] for name, values in self.tokens.items()}
        return inputs_of(row, self.media, [self.counts["image"]], self.sound, spec)


# Of one name: the number of each sample that has it, in order, and what that holds.
Column = dict[int, Any]


@dataclass
class Samples:
    """The samples of a batch, B of them: a column for each name that one of them has."""

    names: Sequence[str]  # what messages call them
    lengths: Sequence[int]
    tokens: dict[str, Column]
    media: dict[str, Column]
    counts: dict[str, list[int]]  # of each sample, by kind
    sound: list[Sequence[bool]]
    numbered: Column
    extra: dict[str, Column]
    joined: dict[str, Tensor]  # of media, what was joined when it was read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Return one of the samples."""
        tokens, media, extra = (
            {name: column[index] for name, column in columns.items() if index in column}
            for columns in (self.tokens, self.media, self.extra)
        )
        return Sample(
            self.lengths[index],
            tokens,
            media,
            {kind: counts[index] for kind, counts in self.counts.items()},
            self.sound[index],
            self.numbered.get(index),
            extra,
        )


def inputs_of(
    tokens: Mapping[str, Tensor],
    media: Mapping[str, Any],
    num_images: Sequence[int],
    sound: Sequence[bool],
    spec: MRopeSpec,
) -> Inputs:
    """Return the arguments by which samples are numbered.

    Args:
        tokens: of all of them, (B, T) each, or (N,) with `cu_seqlens` among them.
        media: of all of them, joined.
        num_images: of each sample.
        sound: as `Sample` has it, of the videos of all.
        spec: the family's rules.
    """
    reads = spec.arguments
    has_types = not isinstance(spec.own_rule, OmniRule | GlmImage)
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
        torch.tensor(num_images, device="cpu") if "images_per_sample" in reads else None,
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
