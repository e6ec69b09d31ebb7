"""One prompt of an omni family: its arguments, and what they have to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import torch

from vecrope.families.rules import OmniRule
from vecrope.spec import MRopeSpec
from vecrope.testing.reference_omni import OmniReference, audio_tokens

__all__ = ["OmniPrompt", "sound_block", "video_with_sound"]

_SPEC_FIELDS = (
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "spatial_merge_size",
    "tokens_per_second",
    "time_order",
    "time_dtype",
    "delta_length",
    "padding_value",
    "default_seconds",
)
_RULE_FIELDS = (
    "audio_token_id",
    "audio_start_token_id",
    "n_window",
    "whole_times",
    "interleave",
    "seconds_per_chunk",
    "sound_markers",
    "sound_end",
)


@dataclass(frozen=True, eq=False, repr=False)
class OmniPrompt:
    """A batch of token rows with its mask, grids, seconds and audio lengths.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64, 1 for a token and 0 for none, or None: all are tokens.
        image_grid_thw: (num_images, 3) int64 or None: `(t, h, w)` in patches.
        video_grid_thw: (num_videos, 3) int64 or None.
        audio_seqlens: (num_audios,) int64 or None: mel frames.
        second_per_grids: (num_videos,) float32 or None: seconds of a temporal step.
        use_audio_in_video: whether videos come with their sound, all or each.
        spec: the rules under which the prompt is read.

    Example:
        >>> import vecrope
        >>> spec = vecrope.MRopeSpec.for_model(
        ...     "qwen3_omni_moe", convention="transformers", tokens_per_second=2
        ... )
        >>> prompt = OmniPrompt.from_symbols(
        ...     spec, ["t<(VAVA)>"], video_grid_thw=[[2, 2, 2]], audio_seqlens=[16],
        ...     second_per_grids=[0.5], use_audio_in_video=True,
        ... )
        >>> position_ids, rope_deltas = prompt.expected()
        >>> position_ids[:, 0]
        tensor([[0., 1., 2., 3., 3., 4., 4., 5., 6.],
                [0., 1., 2., 3., 3., 3., 4., 5., 6.],
                [0., 1., 2., 3., 3., 3., 4., 5., 6.]])
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    image_grid_thw: torch.Tensor | None
    video_grid_thw: torch.Tensor | None
    audio_seqlens: torch.Tensor | None
    second_per_grids: torch.Tensor | None
    use_audio_in_video: bool | Sequence[bool]
    spec: MRopeSpec

    @classmethod
    def from_symbols(
        cls,
        spec: MRopeSpec,
        rows: Sequence[str],
        *,
        mask: Sequence[str] | None = None,
        image_grid_thw: Sequence[Sequence[int]] | None = None,
        video_grid_thw: Sequence[Sequence[int]] | None = None,
        audio_seqlens: Sequence[int] | None = None,
        second_per_grids: Sequence[float] | None = None,
        use_audio_in_video: bool | Sequence[bool] = False,
    ) -> OmniPrompt:
        """Build a prompt from rows of one character a token. It is what `repr` prints.

        Args:
            spec: the rules under which the prompt is read.
            rows: B strings of T characters: `t` text, `I`, `V` and `A` the tokens of images, videos
                and audio, `<` and `>` the start and end of an image or a video, `(` and `)` those
                of audio.
            mask: B strings of T characters `1` and `0`, or None: no mask.
            image_grid_thw: `(t, h, w)` in patches for each image, or None.
            video_grid_thw: the same for videos, or None.
            audio_seqlens: mel frames of each audio, or None.
            second_per_grids: seconds of a temporal step of each video, or None.
            use_audio_in_video: whether videos come with their sound, all or each.
        """
        token_ids = _token_ids(spec)
        kept = None if mask is None else [[int(value) for value in row] for row in mask]
        return cls(
            input_ids=torch.tensor(
                [[token_ids[symbol] for symbol in row] for row in rows], dtype=torch.int64
            ),
            attention_mask=None if kept is None else torch.tensor(kept, dtype=torch.int64),
            image_grid_thw=_tensor(image_grid_thw, (-1, 3)),
            video_grid_thw=_tensor(video_grid_thw, (-1, 3)),
            audio_seqlens=_tensor(audio_seqlens, (-1,)),
            second_per_grids=_tensor(second_per_grids, (-1,), torch.float32),
            use_audio_in_video=use_audio_in_video,
            spec=spec,
        )

    @property
    def symbols(self) -> list[str]:
        """The rows as `from_symbols` takes them: B strings of T characters."""
        names = {token_id: symbol for symbol, token_id in _token_ids(self.spec).items()}
        return ["".join(names.get(token, "t") for token in row) for row in self.input_ids.tolist()]

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that a model's `get_rope_index` takes."""
        return {
            "input_ids": self.input_ids,
            "image_grid_thw": self.image_grid_thw,
            "video_grid_thw": self.video_grid_thw,
            "attention_mask": self.attention_mask,
            "use_audio_in_video": self.use_audio_in_video,
            "audio_seqlens": self.audio_seqlens,
            "second_per_grids": self.second_per_grids,
        }

    def expected(self, *, allow_left_over: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reference's answer.

        Args:
            allow_left_over: whether to ignore media beyond the last one used.

        Returns:
            `position_ids` (3, B, T) and `rope_deltas` (B, 1).

        Raises:
            Refusal: if the prompt has no positions.
        """
        reference = omni_reference(self.spec)
        rule = _rule(self.spec)
        dtype = self.spec.position_dtype
        mask = _list(self.attention_mask)
        if self.spec.mask_rule == "ignore":
            mask = None
        if self.image_grid_thw is None and self.video_grid_thw is None:
            dtype = rule.text_dtype
            reference = reference._replace(reads_audio=self.audio_seqlens is not None)
            if rule.text_padding_value is not None:
                reference = reference._replace(
                    padding_value=rule.text_padding_value, padding_counts=True
                )
        position_ids, rope_deltas = reference.rope_index(
            self.input_ids.tolist(),
            image_grid_thw=_list(self.image_grid_thw) or (),
            video_grid_thw=_list(self.video_grid_thw) or (),
            attention_mask=mask,
            audio_seqlens=_list(self.audio_seqlens) or (),
            second_per_grids=_list(self.second_per_grids),
            use_audio_in_video=self.use_audio_in_video,
            allow_left_over=allow_left_over,
        )
        fractional = dtype == "float32"
        ids_dtype = self.input_ids.dtype if dtype == "ids" else torch.int64
        return (
            torch.tensor(position_ids, dtype=torch.float32 if fractional else ids_dtype),
            torch.tensor(rope_deltas, dtype=torch.float32 if fractional else torch.int64),
        )

    def __repr__(self) -> str:
        parts = [_spec_repr(self.spec), repr(self.symbols)]
        if self.attention_mask is not None:
            mask = ["".join(map(str, row)) for row in self.attention_mask.tolist()]
            parts.append(f"mask={mask}")
        for name in ("image_grid_thw", "video_grid_thw", "audio_seqlens", "second_per_grids"):
            values = _list(getattr(self, name))
            if values is not None:
                parts.append(f"{name}={values}")
        if self.use_audio_in_video:
            parts.append("use_audio_in_video=True")
        return f"OmniPrompt.from_symbols({', '.join(parts)})"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(repr(self))


def omni_reference(spec: MRopeSpec) -> OmniReference:
    """Return the reference for a spec with an `OmniRule`."""
    fields = {name: getattr(spec, name) for name in _SPEC_FIELDS}
    fields |= {name: getattr(_rule(spec), name) for name in _RULE_FIELDS}
    return OmniReference(**fields, rounds=spec.position_dtype == "float32")


def sound_block(spec: MRopeSpec, grid: Sequence[int], seconds: float, mel_frames: int) -> str:
    """Return the tokens of a video and its sound as a processor interleaves them.

    It reads unrounded times, so that its order may differ from that of the positions.

    Args:
        spec: with an `OmniRule`.
        grid: `(t, h, w)` in tokens.
        seconds: of a temporal step.
        mel_frames: of the audio.
    """
    rule = _rule(spec)
    assert spec.tokens_per_second is not None
    step, rate = seconds, spec.tokens_per_second
    frames, height, width = grid
    times = [frame * step * rate for frame in range(frames) for _ in range(height * width)]
    left = audio_tokens(mel_frames, rule.n_window)
    symbols: list[str] = []
    heard = chunk = 0
    for time in times:
        if rule.interleave == "merge":
            due = min(-int(-time // 1), left)
        else:
            length = int(rate * (rule.seconds_per_chunk or 0))
            chunk += time >= (chunk + 1) * length
            due = min(chunk * length, left)
        symbols += ["A"] * (due - heard) + ["V"]
        heard = max(heard, due)
    return "".join(symbols) + "A" * (left - heard)


def video_with_sound(
    spec: MRopeSpec, *, frames: int, height: int, width: int, seconds: float
) -> OmniPrompt:
    """Return a prompt of one video with its sound, of equal length, between some text.

    Args:
        spec: with an `OmniRule`.
        frames: temporal steps of the video.
        height: in tokens.
        width: in tokens.
        seconds: of a temporal step.

    Example:
        >>> import vecrope
        >>> spec = vecrope.MRopeSpec.for_model("qwen3_omni_moe", convention="transformers")
        >>> prompt = video_with_sound(spec, frames=2, height=1, width=2, seconds=0.08)
        >>> prompt.symbols, prompt.audio_seqlens
        (['tttt<(VVAAVV)>tttt'], tensor([16]))
    """
    merge = spec.spatial_merge_size
    mel_frames = max(8, int(frames * seconds * 100))
    block = sound_block(spec, (frames, height, width), seconds, mel_frames)
    return OmniPrompt.from_symbols(
        spec,
        [f"tttt<({block})>tttt"],
        video_grid_thw=[(frames, height * merge, width * merge)],
        audio_seqlens=[mel_frames],
        second_per_grids=[seconds],
        use_audio_in_video=True,
    )


def _rule(spec: MRopeSpec) -> OmniRule:
    rule = spec.own_rule
    if not isinstance(rule, OmniRule):
        raise TypeError(f"spec must be that of an omni family, got own_rule {rule!r}")
    return rule


def _token_ids(spec: MRopeSpec) -> dict[str, int]:
    rule = _rule(spec)
    special = {
        "I": spec.image_token_id,
        "V": spec.video_token_id,
        "<": spec.vision_start_token_id,
        "A": rule.audio_token_id,
        "(": rule.audio_start_token_id,
    }
    given = {symbol: value for symbol, value in special.items() if value is not None}
    free = (token_id for token_id in count() if token_id not in given.values())
    return {**dict(zip("t>)", islice(free, 3), strict=True)), **given}


def _tensor(
    values: Sequence[Any] | None, shape: tuple[int, ...], dtype: torch.dtype = torch.int64
) -> torch.Tensor | None:
    return None if values is None else torch.tensor(values, dtype=dtype).reshape(shape)


def _list(tensor: torch.Tensor | None) -> list[Any] | None:
    return None if tensor is None else tensor.tolist()


def _spec_repr(spec: MRopeSpec) -> str:
    fields = ""
    try:
        preset = MRopeSpec.for_model(spec.model_type, convention=spec.convention)
    except ValueError:
        return repr(spec)
    if preset.tokens_per_second != spec.tokens_per_second:
        preset = replace(preset, tokens_per_second=spec.tokens_per_second)
        fields = f", tokens_per_second={spec.tokens_per_second}"
    if spec != preset:
        return repr(spec)
    return f"MRopeSpec.for_model({spec.model_type!r}, convention={spec.convention!r}{fields})"
