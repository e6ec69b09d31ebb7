"""Whether the tokens of an omni prompt and its media fit, without reading a value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.families.rules import OmniRule
from vecrope.own_rules.omni.items import (
    AUDIO,
    IMAGE,
    SOUND,
    VIDEO,
    Media,
    OmniItems,
    Tokens,
    is_token,
)
from vecrope.spec import MRopeSpec


def has_fault(
    tokens: Tokens,
    items: OmniItems,
    media: Media,
    spec: MRopeSpec,
    rule: OmniRule,
    *,
    allow_unused_grids: bool = False,
) -> Tensor:
    """Return, 0-d bool, whether tokens and media fail to fit.

    If `allow_unused_grids`, media may be left over.
    """
    found = _find(tokens, items, spec, rule)
    filmed = (items.kind == VIDEO) | (items.kind == SOUND)
    broken = (
        found.cut_short
        | found.sound_first
        | (found.image != torch.where(items.kind == IMAGE, items.visual, 0))
        | (found.video != torch.where(filmed, items.visual, 0))
        | (found.audio != items.audio)
        | ((items.kind > 0) & (items.visual + items.audio == 0))
    )
    others = items.misplaced.any()
    for number, (sizes, used) in enumerate(zip(media.sizes, _used(items), strict=True)):
        real, wanted = (sizes > 0).sum(), used.sum()
        others = others | (real < wanted if allow_unused_grids else real != wanted)
        needed = items.audio if number == AUDIO - 1 else items.visual
        if number != AUDIO - 1 or media.reads_audio:
            expected = torch.where(used, needed, 0).sum()
            others = others | (_placeholders(tokens, spec, rule)[number].sum() != expected)
    return broken.any() | others


class _Found(NamedTuple):
    """What the prompt holds where the media say that the I items are, (I,) each."""

    image: Tensor  # placeholders in the item's block
    video: Tensor
    audio: Tensor
    cut_short: Tensor  # bool: its row, or the next item, leaves no room for its end markers
    sound_first: Tensor  # bool: a video that does not come before its sound


def _find(tokens: Tokens, items: OmniItems, spec: MRopeSpec, rule: OmniRule) -> _Found:
    num_tokens = tokens.ids.shape[0]
    start = items.starts + items.markers
    stop = start + items.visual + items.audio
    limit = torch.cat((items.starts[1:], items.starts.new_full((1,), num_tokens)))
    limit = limit.minimum(tokens.bounds[items.rows + 1])
    real = items.kind > 0

    def count(placeholders: Tensor) -> Tensor:
        before = pad(placeholders.cumsum(0), (1, 0))
        return (before[stop.minimum(limit)] - before[start.minimum(limit)]) * real

    image, video, audio = map(count, _placeholders(tokens, spec, rule))
    first = pad(tokens.ids, (0, 1), value=-1)[start.clamp(max=num_tokens)]
    return _Found(
        image=image,
        video=video,
        audio=audio,
        cut_short=real & (stop + items.markers > limit),
        sound_first=(items.kind == SOUND) & (first != spec.video_token_id),
    )


def _placeholders(tokens: Tokens, spec: MRopeSpec, rule: OmniRule) -> list[Tensor]:
    ids = (spec.image_token_id, spec.video_token_id, rule.audio_token_id)
    return [is_token(tokens.ids, token_id) for token_id in ids]


def _used(items: OmniItems) -> tuple[Tensor, Tensor, Tensor]:
    """Return which items take an image, a video and an audio."""
    sound = items.kind == SOUND
    return items.kind == IMAGE, (items.kind == VIDEO) | sound, (items.kind == AUDIO) | sound
