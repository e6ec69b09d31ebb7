"""Where the items of an omni prompt stand, on the host, and what does not fit."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from vecrope.core.search import search
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.omni.host import host_tensor, set_indices, text_around
from vecrope.own_rules.omni.media import Medium, read_media
from vecrope.spec import MRopeSpec

_ARGUMENTS = {"image": "image_grid_thw", "video": "video_grid_thw", "audio": "audio_seqlens"}
_KINDS = tuple(_ARGUMENTS)
# What the batch-wide `use_audio_in_video` rules out.
_MISPLACED = {True: "video", False: "sound"}
# From so many tokens on ids are compared as bytes.
_BYTES_FROM = 2048
_BLOCK = 8192


class Tokens(NamedTuple):
    """The unmasked tokens of a batch on a CPU, one row after the other."""

    ids: Tensor  # (N,)
    bounds: list[int]  # where each row begins, then N
    given_index: (
        Tensor | None
    )  # (N,) where each stands in the batch as given; None: at its own place
    given_bounds: list[int]  # as `bounds`, in the batch as given

    def where(self, at: int) -> str:
        """Name a token by its row and its number in the row, masked ones included."""
        row = row_of(self.bounds, at)
        at = at if self.given_index is None else int(self.given_index[at])
        return f"row {row}, token {at - self.given_bounds[row]}"


class Item(NamedTuple):
    """An image, a video, an audio, or a video with its sound.

    It is its leading markers, its placeholders, and as many trailing markers.
    """

    row: int
    start: int  # token of the first marker
    kind: str  # "image", "video", "audio", or "sound": a video with its sound
    markers: int  # on either side
    visual: Medium | None
    sound: Medium | None
    frame_tokens: int  # placeholders of the image or the video
    audio_tokens: int


def row_of(bounds: list[int], at: int) -> int:
    """Return the row of a token."""
    return bisect_right(bounds, at) - 1


def unmasked_tokens(inputs: Inputs) -> Tokens:
    """Return the tokens that count; the mask's values have been checked."""
    ids, mask = inputs.input_ids, inputs.attention_mask
    if inputs.cu_seqlens is None:
        num_rows, width = ids.shape
        bounds = [row * width for row in range(num_rows + 1)]
    else:
        bounds = inputs.cu_seqlens.tolist()
    ids = ids.reshape(-1)
    if mask is None:
        return Tokens(ids, bounds, None, bounds)
    index = mask.reshape(-1).nonzero().view(-1)
    before = search(index, torch.tensor(bounds) - 1).tolist()
    return Tokens(ids[index], before, index, bounds)


def find_items(inputs: Inputs, spec: MRopeSpec, rule: OmniRule, tokens: Tokens) -> list[Item]:
    """Return the items in the order of the prompt, at least one token.

    Args:
        inputs: on a CPU; types, shapes and the mask's values have been checked.
        spec: the family's rules.
        rule: likewise.
        tokens: of `inputs`.

    Raises:
        ValueError: for media that are not sound, and for media and tokens that do not fit.
    """
    media = read_media(inputs, spec, rule)
    has_grids = inputs.image_grid_thw is not None or inputs.video_grid_thw is not None
    ids, num_tokens = tokens.ids, tokens.ids.shape[0]
    if not num_tokens:
        if any(media) and not inputs.allow_unused_grids:
            raise ValueError(
                f"the grids and lengths describe {len(media[0])} images, {len(media[1])} videos "
                f"and {len(media[2])} audios, input_ids hold none"
            )
        return []
    misses = _misses(ids, _wanted(spec, rule))
    starts = set_indices(misses[:2, :num_tokens].logical_not().view(-1)).tolist()
    is_audio_read = has_grids or inputs.audio_seqlens is not None
    items = _items_at(tokens, inputs, spec, rule, starts, media, is_audio_read=is_audio_read)
    if not _fits(tokens, items, misses[2:], is_audio_read=is_audio_read):
        hits = misses[2:, :num_tokens].logical_not()
        _check(tokens, inputs, items, hits, is_audio_read=is_audio_read)
    if not inputs.allow_unused_grids:
        _check_none_left_over(inputs, items, media)
    return items


def _wanted(spec: MRopeSpec, rule: OmniRule) -> list[int]:
    """Return the ids that start items, then those of image, video and audio tokens."""
    ids = (
        spec.vision_start_token_id,
        rule.audio_start_token_id,
        spec.image_token_id,
        spec.video_token_id,
        rule.audio_token_id,
    )
    return [token_id for token_id in ids if token_id is not None]


def _misses(ids: Tensor, wanted: list[int]) -> Tensor:
    """Return (K, N), or with up to seven columns more, bool: which ids are not the wanted ones."""
    low, high = min(wanted) - 1, max(wanted) + 1
    num_tokens = ids.shape[0]
    if num_tokens < _BYTES_FROM or high - low >= 256 or high >= 2**31:
        return ids != host_tensor(wanted).view(-1, 1)
    # As bytes they are compared faster. Modulo 256 the wanted ones and those on either side differ.
    padded = -(-num_tokens // 8) * 8
    keys = ids.new_full((padded,), low % 256, dtype=torch.uint8)
    for begin in range(0, num_tokens, _BLOCK):
        part = ids[begin : begin + _BLOCK].clamp(low, high)
        keys[begin : begin + part.shape[0]].copy_(part)
    misses = torch.empty((len(wanted), padded), dtype=torch.bool)
    for row, token_id in zip(misses, wanted, strict=True):
        torch.ne(keys, token_id % 256, out=row)
    return misses


def _items_at(
    tokens: Tokens,
    inputs: Inputs,
    spec: MRopeSpec,
    rule: OmniRule,
    starts: list[int],
    media: tuple[list[Medium], ...],
    *,
    is_audio_read: bool,
) -> list[Item]:
    """Tell by the token behind a marker what begins there, and give it its media.

    Args:
        tokens: N of them.
        inputs: the arguments.
        spec: the family's rules.
        rule: likewise.
        starts: places of the vision starts, ascending; then N and more, those of the audio starts.
        media: images, videos and audios.
        is_audio_read: whether an audio start alone begins an audio.
    """
    num_tokens, bounds = tokens.ids.shape[0], tokens.bounds
    num_visions = bisect_left(starts, num_tokens)
    visions, kinds = starts[:num_visions], dict[int, str]()
    if is_audio_read:
        kinds = dict.fromkeys([at - num_tokens for at in starts[num_visions:]], "audio")
    if visions:
        behind = host_tensor(min(at + 1, num_tokens - 1) for at in visions)
        following = tokens.ids.index_select(0, behind).tolist()
        names = {spec.image_token_id: "image", spec.video_token_id: "video"}
        names |= {rule.audio_start_token_id: "sound"}
        row_ends = set(bounds)
        for at, token in zip(visions, following, strict=True):
            if token in names and at + 1 not in row_ends:
                kinds[at] = names[token]
                if kinds[at] == "sound":
                    kinds.pop(at + 1, None)
    batch_wide = inputs.use_audio_in_video if isinstance(inputs.use_audio_in_video, bool) else None
    if batch_wide is not None:
        for at in sorted(at for at, kind in kinds.items() if kind == _MISPLACED[batch_wide]):
            _raise_sound(tokens, at, "batch", has_sound=not batch_wide)

    images, videos, sounds = map(iter, media)
    items, row = [], 0
    for at, kind in sorted(kinds.items()):
        while at >= bounds[row + 1]:
            row += 1
        visual = sound = None
        area = audio = 0
        if kind != "audio":
            visual = next(images if kind == "image" else videos, None)
            if visual is None:
                _raise_missing("image" if kind == "image" else "video", row, inputs, media)
            area = visual.frames * visual.height * visual.width
            if kind != "image" and visual.has_sound != (kind == "sound"):
                of = f"place of video {visual.row}"
                _raise_sound(tokens, at, of, has_sound=kind == "sound")
        if kind in ("audio", "sound"):
            sound = next(sounds, None)
            if sound is None:
                _raise_missing("audio", row, inputs, media)
            audio = sound.audio
        items.append(Item(row, at, kind, 1 + (kind == "sound"), visual, sound, area, audio))
    return items


def _fits(tokens: Tokens, items: list[Item], misses: Tensor, *, is_audio_read: bool) -> bool:
    """Say whether all is surely well; False for what takes a closer look.

    Args:
        tokens: N of them.
        items: in the order of the prompt.
        misses: (3, N) bool, or more columns: what is no image, no video and no audio token.
        is_audio_read: whether audio tokens have to belong to an audio.
    """
    at, bounds, width = 0, tokens.bounds, misses.shape[1]
    images: list[tuple[int, int]] = []
    others: list[tuple[int, int]] = []
    places: list[int] = []
    for row, start, kind, markers, _, _, area, audio in items:
        begin = start + markers
        end = begin + area + audio
        if start < at or end + markers > bounds[row + 1]:
            return False
        at = end + markers
        if kind == "image":
            images.append((begin, end - begin))
        else:
            # As if this row followed that of the images.
            others.append((width + begin, end - begin))
            places += (begin - 1, begin, end - 1)
    image, video, audio_misses = misses
    both = video & audio_misses if is_audio_read else video
    offsets, lengths = zip(*images, *others, strict=True) if items else ((), ())
    expected = text_around(offsets, lengths, 2 * width)
    found = torch.stack((image, both)).view(-1)
    if width % 8 == 0:
        found, expected = found.view(torch.int64), expected.view(torch.int64)
    if not torch.equal(found, expected):
        return False
    if not places:
        return True
    # What is no video token, among those of an item, is one of audio. A video comes first.
    no_video = video.cumsum(0, dtype=torch.int32).index_select(0, host_tensor(places)).tolist()
    wants = [(item.audio_tokens, not item.frame_tokens) for item in items if item.kind != "image"]
    return wants == [
        (upto - before, first > before)
        for before, first, upto in zip(no_video[::3], no_video[1::3], no_video[2::3], strict=True)
    ]


def _check(
    tokens: Tokens,
    inputs: Inputs,
    items: list[Item],
    hits: Tensor,
    *,
    is_audio_read: bool,
) -> None:
    """Check that every item is followed by its tokens, and that nothing else is there.

    Args:
        tokens: N of them.
        inputs: the arguments.
        items: in the order of the prompt.
        hits: (3, N) bool: the image, video and audio tokens.
        is_audio_read: whether audio tokens have to belong to an audio.
    """
    places, ends = [], []
    last = tokens.ids.shape[0] - 1
    following = [*(item.start for item in items), last + 1][1:]
    for item, behind in zip(items, following, strict=True):
        begin = item.start + item.markers
        limit = min(behind, tokens.bounds[item.row + 1])
        end = begin + item.frame_tokens + item.audio_tokens
        ends.append((end, limit))
        places += [min(begin, limit) - 1, min(begin, last), min(end, limit) - 1]
    # How many placeholders there are up to and with each place.
    counts = hits.cumsum(1, dtype=torch.int32)
    counted = counts.index_select(1, host_tensor([*places, last])).T.tolist()
    needed = [0, 0, 0]
    for number, (item, (end, limit)) in enumerate(zip(items, ends, strict=True)):
        before, first, upto = counted[3 * number : 3 * number + 3]
        visual = 0 if item.kind == "image" else 1
        for kind, wants in ((visual, item.frame_tokens), (2, item.audio_tokens)):
            got = upto[kind] - before[kind]
            if wants and got != wants:
                _raise_count(item, kind, wants, got, inputs)
            needed[kind] += wants
        if item.kind == "sound" and first[1] == before[1]:
            raise ValueError(f"{_name(item)}: its first frame must come before its sound")
        if end + item.markers > limit:
            raise ValueError(
                f"{_name(item)}: {item.markers} end markers must follow it; was the prompt "
                f"truncated after the {_name(item).split()[-2]}?"
            )
    total = counted[-1]
    for kind, name in enumerate(_KINDS):
        if total[kind] != needed[kind] and (name != "audio" or is_audio_read):
            _raise_stray(tokens, items, hits[kind], name, inputs)


def _check_none_left_over(
    inputs: Inputs, items: list[Item], media: tuple[list[Medium], ...]
) -> None:
    kinds = [item.kind for item in items]
    sounds = kinds.count("sound")
    used = kinds.count("image"), kinds.count("video") + sounds, kinds.count("audio") + sounds
    for name, given, count in zip(_KINDS, media, used, strict=True):
        if count < len(given):
            row = given[count].row
            value = getattr(inputs, _ARGUMENTS[name])[row].tolist()
            shown = value if name == "audio" else tuple(value)
            raise ValueError(
                f"{_ARGUMENTS[name]} row {row} {shown} is left over: expected "
                f"{len(given)} {name}s in the batch, got {count}"
            )


def _name(item: Item) -> str:
    """Name an item by its picture, or by its audio if it has none."""
    medium = item.visual or item.sound
    assert medium is not None
    return f"row {item.row}, {'video' if item.kind == 'sound' else item.kind} {medium.row}"


def _raise_missing(
    kind: str, row: int, inputs: Inputs, media: tuple[list[Medium], ...]
) -> NoReturn:
    name, given = _ARGUMENTS[kind], len(media[_KINDS.index(kind)])
    if getattr(inputs, name) is None:
        raise ValueError(f"{name} must be given for the {kind} in row {row}, got None")
    raise ValueError(
        f"row {row} holds {kind} {given}, counted from 0 over the batch, but {name} has "
        f"{given} of them"
    )


def _raise_sound(tokens: Tokens, at: int, of: str, *, has_sound: bool) -> NoReturn:
    if has_sound:
        raise ValueError(
            f"{tokens.where(at)}: a video with sound needs use_audio_in_video=True"
            f"{'' if of == 'batch' else f' in the {of}'}"
        )
    raise ValueError(
        f"{tokens.where(at)}: a video without sound must not stand in a {of} with "
        "use_audio_in_video=True; upstream would number it, or what follows, as text"
    )


def _raise_count(item: Item, kind: int, needs: int, got: int, inputs: Inputs) -> NoReturn:
    medium = item.sound if kind == 2 else item.visual
    name = _KINDS[kind]
    assert medium is not None
    value = getattr(inputs, _ARGUMENTS[name])[medium.row].tolist()
    what = f"{value} mel frames need" if kind == 2 else f"grid {tuple(value)} needs"
    why = f"; was the prompt truncated inside the {name}?" if got < needs else ""
    raise ValueError(
        f"row {item.row}, {name} {medium.row}: its {what} {needs} tokens, got {got}{why}"
    )


def _raise_stray(
    tokens: Tokens, items: list[Item], hits: Tensor, kind: str, inputs: Inputs
) -> NoReturn:
    """Raise for the first placeholder (N,) outside of all items."""
    outside = hits.clone()
    for item in items:
        begin = item.start + item.markers
        outside[begin : begin + item.frame_tokens + item.audio_tokens].fill_(False)
    name = _ARGUMENTS[kind]
    why = f"it must follow its start marker, within what {name} describes"
    if getattr(inputs, name) is None:
        why = f"{name} is None"
    raise ValueError(
        f"{tokens.where(int(outside.nonzero()[0]))}: this {kind} token belongs to no {kind}; {why}"
    )
