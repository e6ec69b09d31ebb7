"""What the input of an omni family must satisfy, and the messages that say where it does not."""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope import checks, fit
from vecrope.inputs import Inputs
from vecrope.omni_items import (
    AUDIO,
    IMAGE,
    SOUND,
    VIDEO,
    Media,
    OmniItems,
    Tokens,
    is_token,
)
from vecrope.rules import OmniRule
from vecrope.spec import MRopeSpec

# Whole numbers from here on are not all float32.
MOST_FLOAT = 2**24
_KINDS = ("image", "video", "audio")
_ARGUMENTS = ("image_grid_thw", "video_grid_thw", "audio_seqlens")


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
    fit.check_grids(images, videos, spec)
    fit.check_seconds(inputs.second_per_grid_ts, videos, spec)
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
    found = [int((sizes > 0).sum()) for sizes in _sizes(media)]
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


def find_faults(
    tokens: Tokens, items: OmniItems, media: Media, spec: MRopeSpec, rule: OmniRule
) -> tuple[Tensor, Tensor]:
    """Say where tokens and media fail to fit; does not synchronise.

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
    for number, (sizes, used) in enumerate(zip(_sizes(media), _used(items), strict=True)):
        others = others | ((sizes > 0).sum() != used.sum())
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
    for kind, (sizes, used) in enumerate(zip(_sizes(media), _used(items), strict=True)):
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
    item = torch.searchsorted(items.starts, index, right=True)
    start = pad(items.starts + items.markers, (1, 0), value=-1)[item]
    stop = pad(items.starts + items.markers + items.visual + items.audio, (1, 0), value=-1)[item]
    outside = (index < start) | (index >= stop)
    for kind, placeholders in enumerate(_placeholders(tokens, spec, rule)):
        if kind == AUDIO - 1 and not media.reads_audio:
            continue
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
    for kind, (sizes, used) in enumerate(zip(_sizes(media), _used(items), strict=True)):
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
    limit = pad(items.starts[1:], (0, 1), value=num_tokens)
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


def _sizes(media: Media) -> tuple[Tensor, Tensor, Tensor]:
    return media.images[:-1, 0], media.videos[:-1, 0], media.audio[:-1]


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
