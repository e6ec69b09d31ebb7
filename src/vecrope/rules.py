"""The data of families that number their tokens by a rule of their own.

A spec whose `own_rule` is None is numbered by the pipeline that most families share. Every other
rule is the data of one room, which is named after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class OwnRule:
    """The data of a rule that is not the shared one."""

    # The arguments of `get_rope_index` that the rule reads and the shared one does not.
    arguments: ClassVar[frozenset[str]] = frozenset()


_OMNI_CHOICES = {
    "interleave": ("merge", "walk", "count"),
    "sound_markers": ("own", "shared", "early"),
    "sound_end": ("piece", "block"),
    "text_dtype": ("int64", "float32"),
}


@dataclass(frozen=True, kw_only=True)
class OmniRule(OwnRule):
    """Images, videos and audio, and videos with their sound (qwen2_5_omni, qwen3_omni_moe).

    Args:
        audio_token_id: the placeholder id of audio.
        audio_start_token_id: the id right before every audio.
        n_window: half the mel frames of a window of the audio encoder, which makes 13 tokens of
            each window (qwen3_omni_moe). None: the encoder halves the whole audio twice
            (qwen2_5_omni).
        whole_times: whether the temporal offsets of frames are rounded down.
        interleave: how a video and its sound take turns. `"merge"`: token by token, by their
            times, the video first where they are equal. `"walk"`: chunk by chunk, where each token
            that passes the end of the current chunk begins the next one, so that no chunk is left
            out (transformers). `"count"`: chunk by chunk, those without a frame left out (vLLM).
        seconds_per_chunk: the length of a chunk, for `"walk"` and `"count"`.
        sound_markers: the positions of the two markers on each side of a video with sound. `"own"`:
            each has its own. `"shared"`: the two of a side have one. `"early"`: the positions of
            the video begin at the second marker, one token early (vLLM, for qwen2_5_omni).
        sound_end: what the markers after a video with sound follow: the last `"piece"` of the
            video or the sound (transformers, SGLang), or the largest position (`"block"`, vLLM).
        text_padding_value: the position of masked tokens in a batch without any grid, where it
            counts as a position in the deltas, too (transformers). None: nothing special.
        text_dtype: of the positions of a batch without any grid, `"int64"` or `"float32"`.

    Raises:
        TypeError: for a field of the wrong type.
        ValueError: for a value outside the ones named above.
    """

    arguments: ClassVar[frozenset[str]] = frozenset(
        ("second_per_grid_ts", "audio_seqlens", "use_audio_in_video")
    )

    audio_token_id: int
    audio_start_token_id: int
    n_window: int | None = None
    whole_times: bool
    interleave: Literal["merge", "walk", "count"]
    seconds_per_chunk: float | None = None
    sound_markers: Literal["own", "shared", "early"]
    sound_end: Literal["piece", "block"]
    text_padding_value: int | None = None
    text_dtype: Literal["int64", "float32"]

    def __post_init__(self) -> None:
        for name, known in _OMNI_CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, known))}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("audio_token_id", "audio_start_token_id", "n_window", "text_padding_value"):
            value = getattr(self, name)
            if value is None and name in ("n_window", "text_padding_value"):
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r}")
            least = int(name == "n_window")
            if name != "text_padding_value" and not least <= value < 2**31:
                raise ValueError(f"{name} must be from {least} to 2**31 - 1, got {value}")
        if not isinstance(self.whole_times, bool):
            raise TypeError(f"whole_times must be a bool, got {self.whole_times!r}")
        if self.interleave == "merge":
            return
        seconds = self.seconds_per_chunk
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise TypeError(f"seconds_per_chunk must be a number, got {seconds!r}")
        if not 0 < seconds < 2**31:
            raise ValueError(f"seconds_per_chunk must be positive, got {seconds}")
