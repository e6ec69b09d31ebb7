"""Where the items of an omni prompt stand, on the host, and what does not fit."""

from __future__ import annotations

from bisect import bisect_left
from itertools import compress, pairwise
from typing import NoReturn

from vecrope.checks import RowError
from vecrope.core.modality import IMAGE, VIDEO
from vecrope.families.rules import OmniRule
from vecrope.forms.eager.runs import START, Runs, runs_of_ids
from vecrope.own_rules.common import Tokens
from vecrope.own_rules.omni.media import Media
from vecrope.spec import MRopeSpec

# Audio, and what it starts with. `START` starts images and videos.
AUDIO, AUDIO_START = START + 2, START + 3
_CLIP = bytes((VIDEO, AUDIO))
_NAMES = {IMAGE: "image", VIDEO: "video", AUDIO: "audio"}
_ARGUMENTS = {IMAGE: "image_grid_thw", VIDEO: "video_grid_thw", AUDIO: "audio_seqlens"}

# An image, a video, an audio, or a video with its sound: its leading markers, its placeholders, and
# as many trailing markers. Row; token of the first marker; markers on either side; number in
# `Media.area`, -1 for an audio; number in `Media.audio`, -1 without.
Item = tuple[int, int, int, int, int]


class Finder:
    """Walks the runs of a batch, and takes the media in the order in which they are met."""

    def __init__(self, tokens: Tokens, media: Media, spec: MRopeSpec) -> None:
        rule = spec.own_rule
        assert isinstance(rule, OmniRule)
        self.tokens, self.inputs, self.media = tokens, tokens.inputs, media
        self.ids = {
            IMAGE: spec.image_token_id,
            VIDEO: spec.video_token_id,
            AUDIO: rule.audio_token_id,
            START: spec.vision_start_token_id,
            AUDIO_START: rule.audio_start_token_id,
        }
        videos = media.num_images
        self.given = {
            IMAGE: [at for at, size in enumerate(media.area[:videos]) if size],
            VIDEO: [at for at, size in enumerate(media.area[videos:], videos) if size],
            AUDIO: [at for at, size in enumerate(media.audio) if size],
        }
        self.left = {kind: iter(given) for kind, given in self.given.items()}

    def find(self) -> list[Item]:
        """Return the items in the order of the prompt.

        Raises:
            ValueError: for media and tokens that do not fit.
        """
        items = self._items() if self.tokens.bounds[-1] else []
        if not self.inputs.allow_unused_grids:
            self._check_none_left_over()
        return items

    def _items(self) -> list[Item]:
        ids = tuple((token, kind) for kind, token in self.ids.items())
        kinds, starts, rows, _ = runs = runs_of_ids(self.tokens.ids, ids, self.tokens.bounds)
        areas, audios, left = self.media.area, self.media.audio, self.left
        has_grids = self.inputs.image_grid_thw is not None or self.inputs.video_grid_thw is not None
        reads_audio = has_grids or self.inputs.audio_seqlens is not None
        items: list[Item] = []
        for row, (first, stop) in enumerate(pairwise(rows)):
            end = limit = starts[first]  # behind the last placeholder, and its end markers
            row_end = starts[stop]
            for at in compress(range(first, stop), kinds[first:stop]):
                start, kind = starts[at], kinds[at]
                if start < end or (kind >= AUDIO and not reads_audio):
                    continue
                markers, visual, sound, area, audio = 1, -1, -1, 0, 0
                if kind == START:
                    start = starts[at + 1] - 1
                    kind = kinds[at + 1] if at + 1 < stop else START
                    if kind == AUDIO_START:
                        markers, kind = 2, VIDEO
                    elif kind not in (IMAGE, VIDEO):
                        continue
                    visual = next(left[kind], -1)
                    if visual < 0:
                        self._raise_missing(kind, row)
                    area = areas[visual]
                    if kind == VIDEO and self.media.has_sound[visual] != (markers == 2):
                        self._raise_sound(start, visual)
                elif kind != AUDIO_START:
                    self._raise_stray(start, kind)
                if kind == AUDIO_START or markers == 2:
                    sound = next(left[AUDIO], -1)
                    if sound < 0:
                        self._raise_missing(AUDIO, row)
                    audio = audios[sound]
                    kind = AUDIO if visual < 0 else kind
                if start < limit:
                    self._raise_unended(items[-1])
                item = (row, start, markers, visual, sound)
                items.append(item)
                begin = start + markers
                end = begin + area + audio
                limit = end + markers
                run = at + markers
                stop_run = run + 1 if markers == 1 else bisect_left(starts, end, run)
                if not (
                    run < stop_run <= stop
                    and starts[run] == begin
                    and starts[stop_run] == end
                    and kinds[run] == kind
                    and (markers == 1 or self._is_clip(runs, run, stop_run, area))
                ):
                    self._raise_misfit(item, begin, end)
                if limit > row_end:
                    self._raise_unended(item)
        return items

    @staticmethod
    def _is_clip(runs: Runs, first: int, stop: int, area: int) -> bool:
        """Say whether runs, of which the first is of video, hold so many video tokens and audio."""
        kinds, starts, _, _ = runs
        # Neighbours differ: two kinds take turns.
        of_video = sum(starts[first + 1 : stop + 1 : 2]) - sum(starts[first:stop:2])
        return of_video == area and not kinds[first:stop].strip(_CLIP)

    def _check_none_left_over(self) -> None:
        """Check that every image, video and audio was met."""
        counts = [*map(len, self.given.values())]
        if not self.tokens.bounds[-1] and any(counts):
            raise ValueError(
                f"the grids and lengths describe {counts[0]} images, {counts[1]} videos "
                f"and {counts[2]} audios, input_ids hold none"
            )
        for kind, given in self.given.items():
            rest = [*self.left[kind]]
            if rest:
                token, remark = self.ids[kind], ""
                if token not in self.tokens.ids.tolist():
                    remark = f" ({_NAMES[kind]}_token_id {token} does not occur in input_ids)"
                raise ValueError(
                    f"{_ARGUMENTS[kind]} row {self._row(kind, rest[0])} "
                    f"{self._value(kind, rest[0])} is left over: expected {len(given)} "
                    f"{_NAMES[kind]}s in all, got {len(given) - len(rest)}{remark}"
                )

    def _row(self, kind: int, at: int) -> int:
        """Return the row of the argument that describes a medium."""
        return at - self.media.num_images if kind == VIDEO else at

    def _value(self, kind: int, at: int) -> object:
        value = getattr(self.inputs, _ARGUMENTS[kind])[self._row(kind, at)].tolist()
        return value if kind == AUDIO else tuple(value)

    def _name(self, item: Item) -> str:
        """Name an item by its picture, or by its audio if it has none."""
        _, _, _, visual, sound = item
        kind = AUDIO if visual < 0 else IMAGE if visual < self.media.num_images else VIDEO
        return f"{_NAMES[kind]} {self._row(kind, sound if visual < 0 else visual)}"

    def _raise_missing(self, kind: int, row: int) -> NoReturn:
        name, given = _ARGUMENTS[kind], len(self.given[kind])
        if getattr(self.inputs, name) is None:
            raise RowError.of(row, f": {name} must be given for its {_NAMES[kind]}, got None")
        raise RowError.of(
            row,
            f" holds {_NAMES[kind]} {given}, counted from 0, but {name} has {given} of them in all",
        )

    def _raise_sound(self, at: int, visual: int) -> NoReturn:
        of = "batch"
        if not isinstance(self.inputs.use_audio_in_video, bool):
            of = f"place of video {self._row(VIDEO, visual)}"
        if not self.media.has_sound[visual]:
            raise self.tokens.error(
                at,
                "a video with sound needs use_audio_in_video=True"
                + ("" if of == "batch" else f" in the {of}"),
            )
        raise self.tokens.error(
            at,
            f"a video without sound must not stand in a {of} with use_audio_in_video=True; "
            "upstream would number it, or what follows, as text",
        )

    def _raise_unended(self, item: Item) -> NoReturn:
        name = self._name(item)
        raise RowError.of(
            item[0],
            f", {name}: {item[2]} end markers must follow it; was the prompt truncated after the "
            f"{name.split()[0]}?",
        )

    def _raise_stray(self, at: int, kind: int) -> NoReturn:
        name, of = _ARGUMENTS[kind], _NAMES[kind]
        why = f"it must follow its start marker, within what {name} describes"
        if getattr(self.inputs, name) is None:
            why = f"{name} is None"
        raise self.tokens.error(at, f"this {of} token belongs to no {of}; {why}")

    def _raise_misfit(self, item: Item, begin: int, end: int) -> NoReturn:
        """Raise for an item whose placeholders do not fill the place from `begin` to `end`."""
        row, _, markers, visual, sound = item
        inside = self.tokens.ids[begin : min(end, self.tokens.bounds[row + 1])]
        visual_kind = IMAGE if visual < self.media.num_images else VIDEO
        media = (visual_kind, visual, self.media.area), (AUDIO, sound, self.media.audio)
        for kind, at, sizes in media:
            got = inside.tolist().count(self.ids[kind])
            if at < 0 or got == sizes[at]:
                continue
            name, value = _NAMES[kind], self._value(kind, at)
            shown = f"{value} mel frames need" if kind == AUDIO else f"grid {value} needs"
            why = f"; was the prompt truncated inside the {name}?" if got < sizes[at] else ""
            raise RowError.of(
                row,
                f", {name} {self._row(kind, at)}: its {shown} {sizes[at]} tokens, got {got}{why}",
            )
        if markers == 2 and int(inside[0]) == self.ids[AUDIO]:
            raise RowError.of(
                row, f", {self._name(item)}: its first frame must come before its sound"
            )
        token = int(self.tokens.ids[end])
        self._raise_stray(end, next(kind for kind, of in self.ids.items() if of == token))
