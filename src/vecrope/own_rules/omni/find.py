"""Where the items of an omni prompt stand, on the host, and what does not fit."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import NoReturn

from vecrope.checks import RowError
from vecrope.families.rules import OmniRule
from vecrope.forms.eager.runs import bytes_of_ids
from vecrope.own_rules.common import Tokens
from vecrope.own_rules.omni.media import Media
from vecrope.spec import MRopeSpec

# Kinds of media, in the order in which `Media` counts them.
_IMAGE, _VIDEO, _AUDIO = range(3)
_NAMES = ("image", "video", "audio")
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
        codes, find, sizes, left = self.bytes, self.bytes.find, self.media.size, self.left
        image, video, audio, picture_start, audio_start = self.codes
        of_image, of_video, of_audio = (bytes((code,)) for code in (image, video, audio))
        reads_audio = any(getattr(self.inputs, name) is not None for name in _ARGUMENTS)
        picture = speech = at - 1  # the next starts of a picture and of an audio
        limit = at  # behind the end markers of the last item
        while True:
            if picture < at and (picture := find(picture_start, at, stop)) < 0:
                picture = stop
            if speech < at and (not reads_audio or (speech := find(audio_start, at, stop)) < 0):
                speech = stop
            start = picture if picture < speech else speech
            strays = find(image, at, start), find(video, at, start), find(audio, at, start)
            if max(strays[: 2 + reads_audio]) >= 0:
                self._raise_stray(min(stray for stray in strays if stray >= 0))
            if start == stop:
                return
            markers, visual, sound = 1, -1, -1
            if start == picture:
                following = codes[start + 1] if start + 1 < stop else picture_start
                kind = _IMAGE if following == image else _VIDEO
                if following == audio_start:
                    markers = 2
                elif following not in (image, video):
                    at = start + 1
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
            if markers == 2:
                inside = codes[begin:at]
                fits = inside[:1] == of_video
                fits = fits and inside.translate(None, of_video) == of_audio * sizes[sound]
            else:
                of_kind = of_audio if visual < 0 else of_image if kind == _IMAGE else of_video
                fits = codes.startswith(of_kind * (at - begin), begin)
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
        for name, token, code, count, left in zip(
            _NAMES, self.ids, self.codes, counts, self.left, strict=False
        ):
            if rest := [*left]:
                remark = ""
                if code not in self.bytes:
                    remark = f" ({name}_token_id {token} does not occur in input_ids)"
                argument, row, value = self._given_as(rest[0])
                raise ValueError(
                    f"{argument} row {row} {value} is left over: expected {count} {name}s in all, "
                    f"got {count - len(rest)}{remark}"
                )

    def _given_as(self, number: int) -> tuple[str, int, object]:
        """Return the argument that describes a medium, the row there, and its value."""
        kind = self._kind(number)
        row = number - self.media.firsts[kind]
        value = getattr(self.inputs, _ARGUMENTS[kind])[row].tolist()
        return _ARGUMENTS[kind], row, tuple(value) if isinstance(value, list) else value

    def _kind(self, number: int) -> int:
        return bisect_right(self.media.firsts, number) - 1

    def _name(self, number: int) -> str:
        kind = self._kind(number)
        return f"{_NAMES[kind]} {number - self.media.firsts[kind]}"

    def _raise_missing(self, kind: int, row: int) -> NoReturn:
        argument, name = _ARGUMENTS[kind], _NAMES[kind]
        if getattr(self.inputs, argument) is None:
            raise RowError.of(row, f": {argument} must be given for its {name}, got None")
        count = len(self.given[kind])
        raise RowError.of(
            row, f" holds {name} {count}, counted from 0, but {argument} has {count} of them in all"
        )

    def _raise_sound(self, at: int, video: int) -> NoReturn:
        of = "batch"
        if not isinstance(self.inputs.use_audio_in_video, bool):
            of = f"place of {self._name(video)}"
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
        name = self._name(sound if visual < 0 else visual)
        raise RowError.of(
            row,
            f", {name}: {markers} end markers must follow it; was the prompt truncated after the "
            f"{name.split()[0]}?",
        )

    def _raise_stray(self, at: int) -> NoReturn:
        kind = self.codes.index(self.bytes[at])
        argument, name = _ARGUMENTS[kind], _NAMES[kind]
        why = f"it must follow its start marker, within what {argument} describes"
        if getattr(self.inputs, argument) is None:
            why = f"{argument} is None"
        raise self.tokens.error(at, f"this {name} token belongs to no {name}; {why}")

    def _raise_misfit(self, item: Item, begin: int, end: int) -> NoReturn:
        """Raise for an item whose placeholders do not fill the place from `begin` to `end`."""
        row, _, markers, visual, sound = item
        inside = self.bytes[begin : min(end, self.tokens.bounds[row + 1])]
        for number in (visual, sound):
            kind, size = self._kind(number), self.media.size[number]
            if number < 0 or (got := inside.count(self.codes[kind])) == size:
                continue
            value = self._given_as(number)[2]
            shown = f"{value} mel frames need" if kind == _AUDIO else f"grid {value} needs"
            why = f"; was the prompt truncated inside the {_NAMES[kind]}?" if got < size else ""
            problem = f"its {shown} {size} tokens, got {got}{why}"
            raise RowError.of(row, f", {self._name(number)}: {problem}")
        if markers == 2 and inside[0] == self.codes[_AUDIO]:
            name = self._name(visual)
            raise RowError.of(row, f", {name}: its first frame must come before its sound")
        self._raise_stray(end)
