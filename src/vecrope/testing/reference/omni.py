"""The rule of the omni families: images, videos, audio, and videos with their sound.

The rules are those of transformers' `get_rope_index` of qwen2_5_omni and qwen3_omni_moe, of
SGLang's `get_rope_index_qwen3_omni` and of vLLM's `get_mrope_input_positions` of both; the
arguments choose where these differ, and are named as the fields of `MRopeSpec` and `OmniRule`.

Refused is what an upstream fails on or answers by accident: placeholders outside of what their
markers announce, media that nothing asks for, a video without sound next to `use_audio_in_video`,
a video with sound without it, and a missing end marker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from vecrope.testing.reference.rows import (
    Answer,
    Grid,
    Position,
    Refusal,
    float32,
    grids_of,
    next_position,
    number_rows,
)

__all__ = ["OmniReference", "audio_tokens"]


class _Video(NamedTuple):
    grid: Grid
    seconds: float
    has_sound: bool


class OmniReference(NamedTuple):
    """The rules of one family under one convention; `rope_index` applies them.

    Example:
        >>> reference = OmniReference(
        ...     image_token_id=1, video_token_id=2, audio_token_id=3, vision_start_token_id=4,
        ...     audio_start_token_id=5, spatial_merge_size=2, tokens_per_second=2, n_window=50,
        ...     time_order="seconds", time_dtype="float32", whole_times=False, rounds=True,
        ...     interleave="merge", seconds_per_chunk=None, sound_markers="own", sound_end="piece",
        ...     delta_length="valid", padding_value=0, default_seconds=None,
        ... )
        >>> position_ids, rope_deltas = reference.rope_index(
        ...     [[0, 4, 2, 2, 2, 9, 0]], video_grid_thw=[[3, 2, 2]], second_per_grids=[0.75]
        ... )
        >>> position_ids[0], rope_deltas
        ([[0.0, 1.0, 2.0, 3.5, 5.0, 6.0, 7.0]], [[1.0]])
    """

    image_token_id: int
    video_token_id: int
    audio_token_id: int
    vision_start_token_id: int
    audio_start_token_id: int
    spatial_merge_size: int
    tokens_per_second: float
    n_window: int | None
    time_order: str
    time_dtype: str
    whole_times: bool
    rounds: bool
    interleave: str
    seconds_per_chunk: float | None
    sound_markers: str
    sound_end: str
    delta_length: str
    padding_value: int
    default_seconds: float | None
    padding_counts: bool = False
    reads_audio: bool = True

    def rope_index(
        self,
        input_ids: Sequence[Sequence[int]],
        *,
        image_grid_thw: Sequence[Sequence[int]] = (),
        video_grid_thw: Sequence[Sequence[int]] = (),
        attention_mask: Sequence[Sequence[int]] | None = None,
        audio_seqlens: Sequence[int] = (),
        second_per_grids: Sequence[float] | None = None,
        use_audio_in_video: bool | Sequence[bool] = False,
        allow_left_over: bool = False,
    ) -> Answer:
        """Return the position of every token on every axis, and how far decoding is shifted.

        Args:
            input_ids: B rows of T token ids.
            image_grid_thw: `(t, h, w)` in patches for each image; zeros are no image.
            video_grid_thw: the same for videos.
            attention_mask: B rows of T, 1 for a token and 0 for none, or None: all are tokens.
            audio_seqlens: mel frames of each audio; 0 is no audio.
            second_per_grids: seconds of a temporal step of each video.
            use_audio_in_video: whether videos come with their sound, all or each.
            allow_left_over: whether to ignore media beyond the last one used.

        Raises:
            Refusal: if the prompt has no positions.
        """
        if second_per_grids is None:
            if len(video_grid_thw) and self.default_seconds is None:
                raise Refusal("the videos have no seconds")
            second_per_grids = [self.default_seconds or 0.0] * len(video_grid_thw)
        merge = self.spatial_merge_size
        if isinstance(use_audio_in_video, bool):
            use_audio_in_video = [use_audio_in_video] * len(video_grid_thw)
        images = list(grids_of("image_grid_thw", image_grid_thw, merge))
        videos = [
            _Video(grid, second_per_grids[grid.number], use_audio_in_video[grid.number])
            for grid in grids_of("video_grid_thw", video_grid_thw, merge)
        ]
        audios = [audio_tokens(length, self.n_window) for length in audio_seqlens if length]
        if any(audio < 1 for audio in audios):
            raise Refusal("an audio is too short to have a token")
        walk = _Walk(self, images, videos, audios)

        def number_row(row: int, _kept: list[int], ids: list[int]) -> tuple[list[Position], float]:
            positions = walk.row(ids)
            following = next_position(positions)
            if self.padding_counts and len(ids) < len(input_ids[row]):
                following = max(following, self.padding_value + 1)
            return positions, self.round(following)

        position_ids, rope_deltas = number_rows(
            input_ids,
            attention_mask,
            number_row,
            padding_value=self.padding_value,
            delta_length=self.delta_length,
        )
        if (walk.images or walk.videos or walk.audios) and not allow_left_over:
            raise Refusal("an image, a video or an audio is left over")
        return position_ids, [[self.round(delta)] for [delta] in rope_deltas]

    def round(self, value: float) -> float:
        """Return the value as float32, where positions are."""
        return float32(value) if self.rounds else value

    def times(self, frames: int, seconds: float) -> list[float]:
        """Return the temporal offset of each frame."""
        near: Callable[[float], float] = float32 if self.time_dtype == "float32" else float
        rate = near(self.tokens_per_second)
        if self.time_order == "seconds":
            times = [near(near(frame * near(seconds)) * rate) for frame in range(frames)]
        else:
            times = [near(frame * near(seconds * rate)) for frame in range(frames)]
        return [int(time) for time in times] if self.whole_times else times


@dataclass
class _Walk:
    """One pass over a batch; the media are taken as they are met, on across rows."""

    rules: OmniReference
    images: list[Grid]
    videos: list[_Video]
    audios: list[int]

    def row(self, ids: list[int]) -> list[Position]:
        """Number the unmasked tokens of one row."""
        rules, add = self.rules, self._add
        positions: list[Position] = []
        start: float = 0  # position that the current run of text starts at
        text = 0  # its tokens so far
        while len(positions) < len(ids):
            index = len(positions)
            kind = self._kind(ids, index)
            if not kind:
                if self._is_placeholder(ids[index]):
                    raise Refusal(f"token {index} is a placeholder of nothing")
                positions.append((add(start, text),) * 3)
                text += 1
                continue
            position = add(start, text)
            markers = 2 if kind == "sound" else 1
            offsets, heard = self._media(kind, ids, index + markers)
            if kind == "sound" and rules.sound_markers == "early":
                markers = 1
            shared = rules.sound_markers == "shared"
            positions += [
                (add(position, 0 if shared else marker),) * 3 for marker in range(markers)
            ]
            base = add(position, 1 if shared else markers)
            numbered, last = self._number(offsets, heard, base)
            positions += numbered
            end = add(max(map(max, last)), 1)
            ends = [add(end, 0 if shared else marker) for marker in range(markers)]
            positions += [(value,) * 3 for value in ends]
            start, text = add(ends[-1], 1), 0
        return positions

    def _is_placeholder(self, token: int) -> bool:
        rules = self.rules
        return token in (rules.image_token_id, rules.video_token_id) or (
            rules.reads_audio and token == rules.audio_token_id
        )

    def _kind(self, ids: list[int], index: int) -> str:
        """Say what begins at a token: an image, a video, audio, a video with sound, or nothing."""
        rules = self.rules
        if ids[index] == rules.audio_start_token_id and rules.reads_audio:
            return "audio"
        if ids[index] != rules.vision_start_token_id or index + 1 == len(ids):
            return ""
        following = ids[index + 1]
        if following == rules.image_token_id:
            return "image"
        if following == rules.video_token_id:
            if self.videos and self.videos[0].has_sound:
                raise Refusal("a video has no sound")
            return "video"
        if following == rules.audio_start_token_id:
            if self.videos and not self.videos[0].has_sound:
                raise Refusal("a video has sound, and use_audio_in_video is not set")
            return "sound"
        return ""

    def _media(
        self, kind: str, ids: list[int], begin: int
    ) -> tuple[list[tuple[float, int, int]], int]:
        """Take an item's media, and check that the prompt holds its tokens and its end markers.

        Returns:
            The offsets of its tokens of images or videos, and the number of those of audio.
        """
        rules = self.rules
        grid: Grid | None = None
        seconds, heard = 1.0, 0
        try:
            if kind == "image":
                grid = self.images.pop(0)
            elif kind != "audio":
                grid, seconds, _ = self.videos.pop(0)
            if kind in ("audio", "sound"):
                heard = self.audios.pop(0)
        except IndexError:
            raise Refusal(f"there is no more {kind}") from None
        frames: list[tuple[float, int, int]] = []
        if grid is not None:
            times = rules.times(grid.t, seconds)
            frames = [(time, y, x) for time in times for y in range(grid.h) for x in range(grid.w)]
        placeholder = rules.image_token_id if kind == "image" else rules.video_token_id
        needed = [placeholder] * len(frames) + [rules.audio_token_id] * heard
        body = ids[begin : begin + len(needed)]
        if sorted(body) != sorted(needed) or body[0] != needed[0]:
            raise Refusal(f"the tokens of a {kind} are not there, or not in order")
        end = begin + len(needed)
        markers = range(end, end + (2 if kind == "sound" else 1))
        for index in markers:
            if index >= len(ids) or self._kind(ids, index) or self._is_placeholder(ids[index]):
                raise Refusal(f"a {kind} has no end markers")
        return frames, heard

    def _number(
        self, frames: list[tuple[float, int, int]], heard: int, base: float
    ) -> tuple[list[Position], list[Position]]:
        rules, add = self.rules, self._add
        video: list[Position] = [
            (add(time, base), add(y, base), add(x, base)) for time, y, x in frames
        ]
        audio: list[Position] = [(add(number, base),) * 3 for number in range(heard)]
        if not frames or not heard:
            return video + audio, video + audio
        if rules.interleave == "merge":
            pieces = _merge(video, audio)
        else:
            assert rules.seconds_per_chunk is not None
            length = int(rules.tokens_per_second * rules.seconds_per_chunk)
            number, numbers = 0, []
            for time, _, _ in frames:
                following = int(time // length)
                number = min(following, number + 1) if rules.interleave == "walk" else following
                numbers.append(number)
            numbered_video = zip(numbers, video, strict=True)
            films = [
                [position for _, position in run]
                for _, run in groupby(numbered_video, key=lambda pair: pair[0])
            ]
            sounds = [audio[at : at + length] for at in range(0, heard, length)]
            pieces = []
            for number in range(max(len(films), len(sounds))):
                pieces += films[number : number + 1] + sounds[number : number + 1]
        numbered = [position for piece in pieces for position in piece]
        return numbered, pieces[-1] if rules.sound_end == "piece" else numbered

    def _add(self, left: float, right: float) -> float:
        return self.rules.round(left + right)


def audio_tokens(length: int, n_window: int | None) -> int:
    """Return how many tokens an audio of so many mel frames has.

    Example:
        >>> [audio_tokens(length, None) for length in (3, 100, 3000)]
        [1, 25, 750]
        >>> [audio_tokens(length, 50) for length in (1, 100, 3000)]
        [1, 13, 390]
    """
    if n_window is None:
        return ((length - 1) // 2 + 1 - 2) // 2 + 1
    windows, left = divmod(length, 2 * n_window)
    for _ in range(3):
        left = (left - 1) // 2 + 1
    return left + 13 * windows


def _merge(video: list[Position], audio: list[Position]) -> list[list[Position]]:
    pieces = []
    while video and audio:
        taken = video if video[0][0] <= audio[0][0] else audio
        pieces.append([taken[0]])
        del taken[0]
    return [*pieces, video or audio]
