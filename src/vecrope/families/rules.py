"""The data of families that number their tokens by a rule of their own.

A spec whose `own_rule` is None is numbered by the rule that most families share. Every other one is
implemented in `vecrope.own_rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from vecrope.families.fields import check_bool, check_int, check_one_of

DownsampleMode = Literal["16x", "4x"]
CropRule = Literal["runs", "markers"]

_YARN = ("yarn", "deepseek_yarn")


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
            check_one_of(name, getattr(self, name), known)
        check_int("audio_token_id", self.audio_token_id, 0)
        check_int("audio_start_token_id", self.audio_start_token_id, 0)
        if self.n_window is not None:
            check_int("n_window", self.n_window, 1)
        if self.text_padding_value is not None:
            check_int("text_padding_value", self.text_padding_value)
        check_bool("whole_times", self.whole_times)
        if self.interleave == "merge":
            return
        seconds = self.seconds_per_chunk
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise TypeError(f"seconds_per_chunk must be a number, got {seconds!r}")
        if not 0 < seconds < 2**31:
            raise ValueError(f"seconds_per_chunk must be positive, got {seconds}")


@dataclass(frozen=True)
class Hunyuan(OwnRule):
    """Every token has its index; on the last three axes an image has its columns, rows and ordinal.

    Args:
        num_axes: axes of the positions, at least 3.

    Raises:
        TypeError: if it is no int.
        ValueError: if it is less than 3.
    """

    num_axes: int

    def __post_init__(self) -> None:
        check_int("num_axes", self.num_axes)
        if self.num_axes < 3:
            raise ValueError(f"num_axes must be at least 3, got {self.num_axes}")

    @classmethod
    def of_section(cls, mrope_section: Sequence[float]) -> Hunyuan:
        """Return the rule of a model that splits its rotary dimensions into these sections."""
        return cls(len(mrope_section))


@dataclass(frozen=True)
class GlmImage(OwnRule):
    """Images stand between markers, and those that are still to be generated have grids as well.

    Args:
        image_start_token_id: the id right before an image.
        image_end_token_id: the id right after it.

    Raises:
        TypeError: if one of them is no int.
        ValueError: if they are equal.
    """

    image_start_token_id: int
    image_end_token_id: int
    arguments: ClassVar[frozenset[str]] = frozenset(("images_per_sample",))

    def __post_init__(self) -> None:
        check_int("image_start_token_id", self.image_start_token_id)
        check_int("image_end_token_id", self.image_end_token_id)
        if self.image_start_token_id == self.image_end_token_id:
            raise ValueError(
                "image_start_token_id and image_end_token_id must differ, "
                f"got {self.image_start_token_id} for both"
            )


@dataclass(frozen=True)
class Isaac(OwnRule):
    """An image's rows and columns are counted from 0, wherever in the prompt it stands."""


@dataclass(frozen=True)
class Bailing(OwnRule):
    """Frames are two positions apart, and rows and columns are centred on their frame's position.

    Args:
        least_position: the least position that the checkpoint supports; None: any.
        position_limit: the least position that is too large for it; None: any.
    """

    least_position: int | None = None
    position_limit: int | None = None

    @classmethod
    def of_context(
        cls,
        max_position_embeddings: int | None = None,
        rope_type: str = "default",
        factor: float = 1.0,
        original_max_position_embeddings: int = 0,
    ) -> Bailing:
        """Return the rule of a checkpoint of this context, which YaRN extends on one side alone.

        An original context of 0 stands for the same as the context.
        """
        if max_position_embeddings is None:
            return cls()
        limit = max_position_embeddings
        if rope_type in _YARN:
            limit = max(limit, int((original_max_position_embeddings or limit) * float(factor)))
        return cls(-max_position_embeddings, limit)


@dataclass(frozen=True, kw_only=True)
class MiniCPMV47(OwnRule):
    """A picture's thumbnail and the slices cut from it lie on one canvas: MiniCPM-V 4.7.

    Args:
        image_start_id: the id before a thumbnail, `<image>`.
        image_end_id: the id after it, `</image>`.
        slice_start_id: the id before a slice, `<slice>`.
        slice_end_id: the id after it, `</slice>`.
        newline_id: the id that ends a line of slices.
        downsample_mode: how many patches become one token: `"16x"`, or `"4x"`.
        newline_closes: whether a newline right after a picture still belongs to it, as the four
            markers do (transformers, vLLM), or is text (SGLang).
        crop_rule: where, without `mm_token_type_ids`, the tokens of thumbnails and slices are:
            `"runs"` of the image and the video id, or all that is between two `"markers"`.

    Raises:
        TypeError: for an id that is no int, or a `newline_closes` that is no bool.
        ValueError: for ids that are negative or equal, and for other values than those above.
    """

    arguments: ClassVar[frozenset[str]] = frozenset(("target_sizes", "target_sizes_videos"))

    image_start_id: int
    image_end_id: int
    slice_start_id: int
    slice_end_id: int
    newline_id: int
    downsample_mode: DownsampleMode = "16x"
    newline_closes: bool = True
    crop_rule: CropRule = "runs"

    def __post_init__(self) -> None:
        names = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
        ids = [getattr(self, name) for name in names]
        for name, value in zip(names, ids, strict=True):
            check_int(name, value, 0)
        if len(set(ids)) < len(ids):
            raise ValueError(f"{', '.join(names)} must differ, got {tuple(ids)}")
        check_bool("newline_closes", self.newline_closes)
        check_one_of("downsample_mode", self.downsample_mode, get_args(DownsampleMode))
        check_one_of("crop_rule", self.crop_rule, get_args(CropRule))

    @property
    def downsample_factor(self) -> int:
        """Patches per token along each side of a crop."""
        return 2 if self.downsample_mode == "4x" else 4


def minicpmv4_7_rule(
    convention: str, *, uses_mrope_canvas: object, mrope_mode: object, **fields: object
) -> MiniCPMV47:
    """Return the rule of a configuration, for an upstream.

    Args:
        convention: the upstream.
        uses_mrope_canvas: the configuration's field, by which SGLang and vLLM know a canvas.
        mrope_mode: likewise; they differ on how it may be spelt.
        **fields: the ids and the mode of `MiniCPMV47`.

    Raises:
        ValueError: if SGLang or vLLM would see no canvas, and number such a prompt as text.
    """
    if convention == "transformers":
        return MiniCPMV47(**fields)  # type: ignore[arg-type]
    mode = str(mrope_mode).strip().lower()
    if not uses_mrope_canvas and (
        mode != "canvas" if convention == "sglang" else "canvas" not in mode
    ):
        raise ValueError(
            f"the configuration must have uses_mrope_canvas true or mrope_mode 'canvas' under "
            f"convention {convention!r}, got {uses_mrope_canvas!r} and {mrope_mode!r}: that "
            "upstream would number images as text"
        )
    return MiniCPMV47(
        crop_rule="markers",
        newline_closes=convention != "sglang",
        **fields,  # type: ignore[arg-type]
    )
