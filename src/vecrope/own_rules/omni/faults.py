"""Whether the tokens of an omni prompt and its media fit, and the messages that say where not."""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.search import count_begun
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
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

_KINDS = ("image", "video", "audio")
_ARGUMENTS = ("image_grid_thw", "video_grid_thw", "audio_seqlens")


def find_faults(
    tokens: Tokens,
    items: OmniItems,
    media: Media,
    spec: MRopeSpec,
    rule: OmniRule,
    *,
    lenient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Say where tokens and media fail to fit; does not synchronise.

    If `lenient`, media may be left over.

    Returns:
        (I,) bool: items that are not followed by just what their media ask for; and 0-d bool:
        whether there are other faults.
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
        others = others | (real < wanted if lenient else real != wanted)
        needed = items.audio if number == AUDIO - 1 else items.visual
        if number != AUDIO - 1 or media.reads_audio:
            expected = torch.where(used, needed, 0).sum()
            others = others | (_placeholders(tokens, spec, rule)[number].sum() != expected)
    return broken, others


def raise_fault(
    broken: Tensor,
    tokens: Tokens,
    items: OmniItems,
    media: Media,
    inputs: Inputs,
    spec: MRopeSpec,
    rule: OmniRule,
) -> NoReturn:
    """Raise the ValueError that describes the first fault found by `find_faults`."""
    for at in items.misplaced.nonzero()[:1, 0].tolist():
        row, token = _where(at, tokens)
        if inputs.use_audio_in_video:
            raise ValueError(
                f"row {row}, token {token}: a video without sound must not stand in a batch with "
                "use_audio_in_video=True; upstream would number it, or what follows, as text"
            )
        raise ValueError(
            f"row {row}, token {token}: a video with sound needs use_audio_in_video=True"
        )
    for kind, (sizes, used) in enumerate(zip(media.sizes, _used(items), strict=True)):
        given = int((sizes > 0).sum())
        ordinals = items.audio_ordinals if kind == AUDIO - 1 else items.ordinals
        for at in (used & (ordinals >= given)).nonzero()[:1, 0].tolist():
            _raise_missing(kind, int(items.rows[at]), given, inputs)
    for at in broken.nonzero()[:1, 0].tolist():
        _raise_broken(at, tokens, items, media, inputs, spec, rule)
    _raise_stray(tokens, items, media, inputs, spec, rule)


def _raise_missing(kind: int, row: int, given: int, inputs: Inputs) -> NoReturn:
    name = _ARGUMENTS[kind]
    if getattr(inputs, name) is None:
        raise ValueError(f"{name} must be given for the {_KINDS[kind]} in row {row}, got None")
    raise ValueError(
        f"row {row} holds {_KINDS[kind]} {given}, counted from 0 over the batch, but {name} has "
        f"{given} of them"
    )


def _raise_broken(
    at: int,
    tokens: Tokens,
    items: OmniItems,
    media: Media,
    inputs: Inputs,
    spec: MRopeSpec,
    rule: OmniRule,
) -> NoReturn:
    kind = int(items.kind[at])
    found = _find(tokens, items, spec, rule)
    row = f"row {int(items.rows[at])}"
    if kind != AUDIO:
        medium = IMAGE - 1 if kind == IMAGE else VIDEO - 1
        order = media.image_order if kind == IMAGE else media.video_order
        grid_row = int(order[items.ordinals[at]])
        grids = getattr(inputs, _ARGUMENTS[medium])
        needs, got = int(items.visual[at]), int(found[medium][at])
        if needs != got:
            raise ValueError(
                f"{row}, {_KINDS[medium]} {grid_row}: its grid {tuple(grids[grid_row].tolist())} "
                f"needs {needs} tokens, got {got}{_why(needs, got, medium)}"
            )
    else:
        medium, grid_row = AUDIO - 1, int(media.audio_order[items.audio_ordinals[at]])
    if kind in (AUDIO, SOUND):
        heard = int(media.audio_order[items.audio_ordinals[at]])
        assert inputs.audio_seqlens is not None
        needs, got = int(items.audio[at]), int(found.audio[at])
        if needs != got:
            raise ValueError(
                f"{row}, audio {heard}: its {int(inputs.audio_seqlens[heard])} mel frames need "
                f"{needs} tokens, got {got}{_why(needs, got, AUDIO - 1)}"
            )
    if found.sound_first[at]:
        raise ValueError(f"{row}, video {grid_row}: its first frame must come before its sound")
    assert found.cut_short[at]
    raise ValueError(
        f"{row}, {_KINDS[medium]} {grid_row}: {int(items.markers[at])} end markers must follow it; "
        f"was the prompt truncated after the {_KINDS[medium]}?"
    )


def _why(needs: int, got: int, medium: int) -> str:
    return f"; was the prompt truncated inside the {_KINDS[medium]}?" if got < needs else ""


def _raise_stray(
    tokens: Tokens,
    items: OmniItems,
    media: Media,
    inputs: Inputs,
    spec: MRopeSpec,
    rule: OmniRule,
) -> NoReturn:
    """Raise for a placeholder outside of all items, or for media that nothing asks for."""
    index = torch.arange(tokens.ids.shape[0], device=tokens.ids.device)
    item = count_begun(items.starts, index.shape[0])
    start = pad(items.starts + items.markers, (1, 0), value=-1)[item]
    stop = pad(items.starts + items.markers + items.visual + items.audio, (1, 0), value=-1)[item]
    outside = (index < start) | (index >= stop)
    for kind, placeholders in enumerate(_placeholders(tokens, spec, rule)):
        for at in (outside & placeholders).nonzero()[:1, 0].tolist():
            row, token = _where(at, tokens)
            missing = getattr(inputs, _ARGUMENTS[kind]) is None
            why = (
                f"{_ARGUMENTS[kind]} is None"
                if missing
                else (f"it must follow its start marker, within what {_ARGUMENTS[kind]} describes")
            )
            raise ValueError(
                f"row {row}, token {token}: this {_KINDS[kind]} token belongs to no "
                f"{_KINDS[kind]}; {why}"
            )
    for kind, (sizes, used) in enumerate(zip(media.sizes, _used(items), strict=True)):
        order = (sizes > 0).nonzero()[:, 0]
        count = int(used.sum())
        if count < order.shape[0]:
            at = int(order[count])
            value = getattr(inputs, _ARGUMENTS[kind])[at].tolist()
            raise ValueError(
                f"{_ARGUMENTS[kind]} row {at} {tuple(value) if kind != AUDIO - 1 else value} is "
                f"left over: expected {order.shape[0]} {_KINDS[kind]}s in the batch, got {count}"
            )
    raise AssertionError("a fault without a place")


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


def _where(at: int, tokens: Tokens) -> tuple[int, int]:
    """Return the row of an unmasked token and its number in the row, masked ones included."""
    row = int(tokens.row_of(torch.tensor(at, device=tokens.bounds.device)))
    if tokens.place is not None:
        at = int((tokens.place == at).nonzero()[0])
    return row, at - int(tokens.padded_bounds[row])
