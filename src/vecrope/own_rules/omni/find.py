"""Where the items of an omni prompt stand, on the host, and what does not fit."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from vecrope.core.modality import set_indices
from vecrope.core.search import search
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.omni.media import Medium, read_media
from vecrope.spec import MRopeSpec

_ARGUMENTS = {"image": "image_grid_thw", "video": "video_grid_thw", "audio": "audio_seqlens"}
_KINDS = tuple(_ARGUMENTS)


class Tokens(NamedTuple):
    """The unmasked tokens of a batch on a CPU, one row after the other."""

    ids: Tensor  # (N,)
    bounds: list[int]  # where each row begins, then N
    index: Tensor | None  # (N,) where each stands in the batch as given; None: at its own place
    given_bounds: list[int]  # as `bounds`, in the batch as given

    def where(self, at: int) -> str:
        """Name a token by its row and its number in the row, masked ones included."""
        row = row_of(self.bounds, at)
        at = at if self.index is None else int(self.index[at])
        return f"row {row}, token {at - self.given_bounds[row]}"


class Item(NamedTuple):
    """An image, a video, an audio, or a video with its sound.

    It is its leading markers, `visual.frames * height * width + audio.audio` placeholders, and as
    many trailing markers.
    """

    row: int
    start: int  # token of the first marker
    visual: Medium | None
    audio: Medium | None
    is_image: bool

    @property
    def markers(self) -> int:
        """How many there are on either side."""
        return 2 if self.visual and self.audio else 1

    @property
    def counts(self) -> list[int]:
        """How many image, video and audio tokens it has."""
        visual, audio = self.visual, self.audio
        area = visual.frames * visual.height * visual.width if visual else 0
        return [area * self.is_image, area * (not self.is_image), audio.audio if audio else 0]


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
        if any(media) and not inputs.lenient:
            raise ValueError(
                f"the grids and lengths describe {len(media[0])} images, {len(media[1])} videos and "
                f"{len(media[2])} audios, input_ids hold none"
            )
        return []
    marks = spec.vision_start_token_id, rule.audio_start_token_id
    placeholders = spec.image_token_id, spec.video_token_id, rule.audio_token_id
    wanted = torch.tensor([*marks, *placeholders], dtype=ids.dtype)
    hits = ids == wanted.unsqueeze(1)
    starts = set_indices(hits[:2].view(-1)).tolist()
    is_audio_read = has_grids or inputs.audio_seqlens is not None
    items = _items_at(tokens, inputs, spec, rule, starts, media, is_audio_read=is_audio_read)
    _check(tokens, inputs, spec, items, media, hits[2:], is_audio_read=is_audio_read)
    return items


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
        starts: places of the vision starts; then N and more, places of the audio starts.
        media: images, videos and audios.
        is_audio_read: whether an audio start alone begins an audio.
    """
    num_tokens, bounds = tokens.ids.shape[0], tokens.bounds
    visions = [at for at in starts if at < num_tokens]
    audios = {at - num_tokens for at in starts[len(visions) :]}
    following: list[int] = []
    if visions:
        behind = torch.tensor(visions) + 1
        following = tokens.ids[behind.clamp_(max=num_tokens - 1)].tolist()
    kinds: dict[int, str] = {}
    names = {spec.image_token_id: "image", spec.video_token_id: "video"}
    names[rule.audio_start_token_id] = "sound"
    for at, token in zip(visions, following, strict=True):
        if token in names and at + 1 < bounds[row_of(bounds, at) + 1]:
            kinds[at] = names[token]
    if is_audio_read:
        with_video = {at + 1 for at, kind in kinds.items() if kind == "sound"}
        kinds.update(dict.fromkeys(audios - with_video, "audio"))

    used = dict.fromkeys(_KINDS, 0)

    def take(kind: str, at: int) -> Medium:
        given, number = media[_KINDS.index(kind)], used[kind]
        if number == len(given):
            _raise_missing(kind, row_of(bounds, at), number, inputs)
        used[kind] += 1
        return given[number]

    items = []
    batch_wide = inputs.use_audio_in_video if isinstance(inputs.use_audio_in_video, bool) else None
    for at in sorted(kinds):
        kind, visual, audio = kinds[at], None, None
        has_sound = kind == "sound"
        if kind in ("video", "sound") and batch_wide is not None and has_sound != batch_wide:
            _raise_sound(tokens, at, "batch", has_sound=has_sound)
        if kind != "audio":
            visual = take("image" if kind == "image" else "video", at)
            if kind != "image" and visual.has_sound != has_sound:
                _raise_sound(tokens, at, f"place of video {visual.row}", has_sound=has_sound)
        if kind in ("audio", "sound"):
            audio = take("audio", at)
        items.append(Item(row_of(bounds, at), at, visual, audio, kind == "image"))
    return items


def _check(
    tokens: Tokens,
    inputs: Inputs,
    spec: MRopeSpec,
    items: list[Item],
    media: tuple[list[Medium], ...],
    hits: Tensor,
    *,
    is_audio_read: bool,
) -> None:
    """Check that every item is followed by its tokens, and that nothing else is there.

    Args:
        tokens: N of them.
        inputs: the arguments.
        spec: the family's rules.
        items: in the order of the prompt.
        media: images, videos and audios.
        hits: (3, N) bool: the placeholders of images, videos and audio.
        is_audio_read: whether audio tokens have to belong to an audio.
    """
    places, ends = [], []
    last = tokens.ids.shape[0] - 1
    following = [*(item.start for item in items), last + 1][1:]
    for item, behind in zip(items, following, strict=True):
        begin = item.start + item.markers
        limit = min(behind, tokens.bounds[item.row + 1])
        end = begin + sum(item.counts)
        ends.append((end, limit))
        places += [min(begin, limit) - 1, min(begin, last), min(end, limit) - 1]
    # How many placeholders there are up to and with each place.
    counts = hits.cumsum(1, dtype=torch.int32)[:, torch.tensor([*places, last])].T.tolist()
    needed = [0, 0, 0]
    for number, (item, (end, limit)) in enumerate(zip(items, ends, strict=True)):
        before, first, upto = counts[3 * number : 3 * number + 3]
        got = [more - less for more, less in zip(upto, before, strict=True)]
        for kind, wants in enumerate(item.counts):
            if wants and got[kind] != wants:
                _raise_count(item, kind, wants, got[kind], inputs)
            needed[kind] += wants
        if item.markers == 2 and first[1] == before[1]:
            assert item.visual is not None
            raise ValueError(
                f"row {item.row}, video {item.visual.row}: its first frame must come before its "
                "sound"
            )
        if end + item.markers > limit:
            raise ValueError(
                f"{_name(item)}: {item.markers} end markers must follow it; was the prompt "
                f"truncated after the {_name(item).split()[-2]}?"
            )
    total = counts[-1]
    for kind, name in enumerate(_KINDS):
        if total[kind] != needed[kind] and (name != "audio" or is_audio_read):
            _raise_stray(tokens, items, hits[kind], name, inputs)
    if inputs.lenient:
        return
    used = [sum(1 for item in items if item.counts[kind]) for kind in range(3)]
    for name, given, count in zip(_KINDS, media, used, strict=True):
        if count < len(given):
            row = given[count].row
            value = getattr(inputs, _ARGUMENTS[name])[row].tolist()
            raise ValueError(
                f"{_ARGUMENTS[name]} row {row} {value if name == 'audio' else tuple(value)} is left "
                f"over: expected {len(given)} {name}s in the batch, got {count}"
            )


def _name(item: Item) -> str:
    """Name an item by its picture, or by its audio if it has none."""
    medium = item.visual or item.audio
    assert medium is not None
    kind = "audio" if item.visual is None else "image" if item.is_image else "video"
    return f"row {item.row}, {kind} {medium.row}"


def _raise_missing(kind: str, row: int, given: int, inputs: Inputs) -> NoReturn:
    name = _ARGUMENTS[kind]
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
    medium = item.audio if kind == 2 else item.visual
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
        outside[begin : begin + sum(item.counts)] = False
    name = _ARGUMENTS[kind]
    why = f"it must follow its start marker, within what {name} describes"
    if getattr(inputs, name) is None:
        why = f"{name} is None"
    raise ValueError(
        f"{tokens.where(int(outside.nonzero()[0]))}: this {kind} token belongs to no {kind}; {why}"
    )
