"""Where the items of an omni prompt stand, on the host, and what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn

from vecrope.checks import RowError
from vecrope.families.rules import OmniRule
from vecrope.forms.eager.runs import bytes_of_ids
from vecrope.own_rules.common import Tokens
from vecrope.own_rules.omni.media import KINDS, Media
from vecrope.spec import MRopeSpec

# The ids that matter: the placeholders of media, in the order of `KINDS`, and what images and
# videos start with, and audio.
_IMAGE, _VIDEO, _AUDIO, _PICTURE, _AUDIO_START = range(5)
_ARGUMENTS = ("image_grid_thw", "video_grid_thw", "audio_seqlens")

# An image, a video, an audio, or a video with its sound: its leading markers, its placeholders, and
# as many trailing markers. Row; token of the first marker; markers on either side; of `Media.size`,
# the number of the image or the video, -1 for an audio; that of the audio, -1 without.
Item = tuple[int, int, int, int, int]


class Finder:
    """Walks over the tokens of a batch, and takes the media in the order in which they are met."""

    def __init__(self, tokens: Tokens, media: Media, spec: MRopeSpec) -> None:
        rule = spec.own_rule
        assert isinstance(rule, OmniRule)
        ids = spec.image_token_id, spec.video_token_id, rule.audio_token_id
        starts = spec.vision_start_token_id, rule.audio_start_token_id
        self.tokens, self.inputs, self.media = tokens, tokens.inputs, media
        self.ids = [token for token in ids + starts if token is not None]  # all are given
        self.bytes, self.codes = bytes_of_ids(tokens.ids, self.ids)
        numbers = (range(*of_kind) for of_kind in pairwise(media.firsts))
        self.given = [[at for at in of_kind if media.size[at]] for of_kind in numbers]
        self.left = [*map(iter, self.given)]

    def find(self) -> list[Item]:
        """Return the items in the order of the prompt.

        Raises:
            ValueError: for media and tokens that do not fit.
        """
        items: list[Item] = []
        for row, (first, stop) in enumerate(pairwise(self.tokens.bounds)):
            self._find_in_row(items, row, first, stop)
        if not self.inputs.allow_unused_grids:
            self._check_none_left_over()
        return items

    def _find_in_row(self, items: list[Item], row: int, at: int, stop: int) -> None:
        """Add the items of a row, of the tokens from `at` to `stop`."""
        codes, sizes, left = self.bytes, self.media.size, self.left
        image, video, audio, picture, audio_start = ids = self.codes
        of_kind = [bytes((code,)) for code in (image, video, audio)]
        # Where each of the ids comes next, `stop` if it does not; those that are to be found again.
        ahead = [stop] * 5
        passed: Sequence[int] = range(5)
        if all(getattr(self.inputs, name) is None for name in _ARGUMENTS):
            passed = _IMAGE, _VIDEO, _PICTURE  # audio is text
        limit = at  # behind the end markers of the last item
        while True:
            for of in passed:
                place = codes.find(ids[of], at, stop)
                ahead[of] = place if place >= 0 else stop
            start = min(ahead)
            if start == stop:
                return
            marker = ahead.index(start)
            if marker <= _AUDIO:
                self._raise_stray(start)
            markers, visual, sound, kind = 1, -1, -1, _AUDIO
            if marker == _PICTURE:
                following = codes[start + 1] if start + 1 < stop else picture
                kind = _IMAGE if following == image else _VIDEO
                if following == audio_start:
                    markers = 2
                elif following not in (image, video):
                    at, passed = start + 1, (_PICTURE,)
                    continue
                if (visual := next(left[kind], -1)) < 0:
                    self._raise_missing(kind, row)
                if kind == _VIDEO and self.media.has_sound[visual] != (markers == 2):
                    self._raise_sound(start, visual)
            if (markers == 2 or visual < 0) and (sound := next(left[_AUDIO], -1)) < 0:
                self._raise_missing(_AUDIO, row)
            if start < limit:
                self._raise_unended(items[-1])
            item = (row, start, markers, visual, sound)
            begin = start + markers
            at = begin + sizes[visual] + sizes[sound]
            limit = at + markers
            passed = marker, kind
            if markers == 2:
                passed = range(5)
                inside, of_video = codes[begin:at], of_kind[_VIDEO]
                sound_alone = inside.translate(None, of_video)
                fits = inside[:1] == of_video and sound_alone == of_kind[_AUDIO] * sizes[sound]
            else:
                fits = codes.startswith(of_kind[kind] * (at - begin), begin)
            if not fits or at > stop or (at < stop and codes[at] == codes[at - 1]):
                self._raise_misfit(item, begin, at)
            if limit > stop:
                self._raise_unended(item)
            items.append(item)

    def _check_none_left_over(self) -> None:
        """Check that every image, video and audio was met."""
        counts = [*map(len, self.given)]
        if not self.bytes and any(counts):
            raise ValueError(
                f"the grids and lengths describe {counts[0]} images, {counts[1]} videos "
                f"and {counts[2]} audios, input_ids hold none"
            )
        for rest, count in zip(map(list, self.left), counts, strict=True):
            if rest:
                kind, medium, value = self._of(rest[0])
                name, row = medium.split()
                remark = ""
                if self.codes[kind] not in self.bytes:
                    token = self.ids[kind]
                    remark = f" ({name}_token_id {token} does not occur in input_ids)"
                raise ValueError(
                    f"{_ARGUMENTS[kind]} row {row} {value} is left over: expected {count} {name}s "
                    f"in all, got {count - len(rest)}{remark}"
                )

    def _of(self, number: int) -> tuple[int, str, object]:
        """Return the kind of a medium, its name, and the value that describes it."""
        kind, row = self.media.place(number)
        value = getattr(self.inputs, _ARGUMENTS[kind])[row].tolist()
        return kind, f"{KINDS[kind]} {row}", tuple(value) if isinstance(value, list) else value

    def _raise_missing(self, kind: int, row: int) -> NoReturn:
        argument, name = _ARGUMENTS[kind], KINDS[kind]
        if getattr(self.inputs, argument) is None:
            raise RowError.of(row, f": {argument} must be given for its {name}, got None")
        count = len(self.given[kind])
        raise RowError.of(
            row, f" holds {name} {count}, counted from 0, but {argument} has {count} of them in all"
        )

    def _raise_sound(self, at: int, video: int) -> NoReturn:
        of = "batch"
        if not isinstance(self.inputs.use_audio_in_video, bool):
            of = f"place of {self._of(video)[1]}"
        if not self.media.has_sound[video]:
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
        row, _, markers, visual, sound = item
        name = self._of(sound if visual < 0 else visual)[1]
        raise RowError.of(
            row,
            f", {name}: {markers} end markers must follow it; was the prompt truncated after the "
            f"{name.split()[0]}?",
        )

    def _raise_stray(self, at: int) -> NoReturn:
        kind = self.codes.index(self.bytes[at])
        argument, name = _ARGUMENTS[kind], KINDS[kind]
        why = f"it must follow its start marker, within what {argument} describes"
        if getattr(self.inputs, argument) is None:
            why = f"{argument} is None"
        raise self.tokens.error(at, f"this {name} token belongs to no {name}; {why}")

    def _raise_misfit(self, item: Item, begin: int, end: int) -> NoReturn:
        """Raise for an item whose placeholders do not fill the place from `begin` to `end`."""
        row, _, markers, visual, sound = item
        inside = self.bytes[begin : min(end, self.tokens.bounds[row + 1])]
        for number in (visual, sound):
            if number < 0:
                continue
            (kind, name, value), size = self._of(number), self.media.size[number]
            if (got := inside.count(self.codes[kind])) != size:
                shown = f"{value} mel frames need" if kind == _AUDIO else f"grid {value} needs"
                why = f"; was the prompt truncated inside the {name.split()[0]}?"
                problem = f"its {shown} {size} tokens, got {got}{why if got < size else ''}"
                raise RowError.of(row, f", {name}: {problem}")
        if markers == 2 and inside[0] == self.codes[_AUDIO]:
            name = self._of(visual)[1]
            raise RowError.of(row, f", {name}: its first frame must come before its sound")
        self._raise_stray(end)
