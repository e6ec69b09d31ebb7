"""One prompt to test a function with: its arguments, and what they have to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

import torch

from vecrope.checks import check_spec
from vecrope.spec import MRopeSpec
from vecrope.testing import reference
from vecrope.testing.rules import family_of, seconds_of, symbols_of, type_rules_of

__all__ = ["Prompt"]

Seconds = torch.Tensor | Sequence[float]
Rows = Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False, repr=False)
class Prompt:
    """A batch of token rows with its mask and all else that a model would be given.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64, 1 for a token and 0 for none, or None: all are tokens.
        mm_token_type_ids: (B, T) int64 or None: 0 text, 1 image, 2 video, read off the unmasked ids
            by the spec's marker rule, and 0 at masked places that the spec leaves out.
        image_grid_thw: (num_images, 3) int64 or None: `(t, h, w)` in patches.
        video_grid_thw: (num_videos, 3) int64 or None.
        spec: the rules under which the prompt is read.
        second_per_grid_ts: (num_videos,) float32 or float64, a list of floats, or None.
        audio_seqlens: (num_audios,) int64 or None: mel frames, of omni families.
        second_per_grids: (num_videos,) float32 or None: `second_per_grid_ts` of omni families.
        use_audio_in_video: whether videos come with their sound, all or each, of omni families.
        target_sizes: (num_image_crops, 2) int64 or None: `(h, w)` in patches, of minicpmv4_7.
        target_sizes_videos: (num_video_crops, 2) int64 or None.
        images_per_sample: (B,) int64 or None: the numbers of grids of each row, of glm_image.

    Example:
        >>> import vecrope
        >>> spec = vecrope.MRopeSpec.for_model("glm4v", convention="sglang")
        >>> prompt = Prompt.from_symbols(spec, ["t<II>t"], image_grid_thw=[[1, 2, 4]])
        >>> prompt.mm_token_type_ids
        tensor([[0, 0, 1, 1, 0, 0]])
        >>> position_ids, rope_deltas = prompt.expected()
        >>> position_ids[:, 0]
        tensor([[0, 1, 2, 2, 4, 5],
                [0, 1, 2, 2, 4, 5],
                [0, 1, 2, 3, 4, 5]])
        >>> prompt
        Prompt.from_symbols(MRopeSpec.for_model('glm4v', convention='sglang'), ['t<II>t'],
            image_grid_thw=[[1, 2, 4]])
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    mm_token_type_ids: torch.Tensor | None
    image_grid_thw: torch.Tensor | None
    video_grid_thw: torch.Tensor | None
    spec: MRopeSpec
    second_per_grid_ts: Seconds | None = None
    audio_seqlens: torch.Tensor | None = None
    second_per_grids: torch.Tensor | None = None
    use_audio_in_video: bool | Sequence[bool] = False
    target_sizes: torch.Tensor | None = None
    target_sizes_videos: torch.Tensor | None = None
    images_per_sample: torch.Tensor | None = None

    @classmethod
    def from_symbols(
        cls,
        spec: MRopeSpec,
        rows: Sequence[str],
        *,
        mask: Sequence[str] | None = None,
        image_grid_thw: Rows | None = None,
        video_grid_thw: Rows | None = None,
        second_per_grid_ts: Seconds | None = None,
        audio_seqlens: Sequence[int] | None = None,
        second_per_grids: Sequence[float] | None = None,
        use_audio_in_video: bool | Sequence[bool] = False,
        target_sizes: Rows | None = None,
        target_sizes_videos: Rows | None = None,
        images_per_sample: Sequence[int] | None = None,
    ) -> Prompt:
        """Build a prompt from rows of one character a token. It is what `repr` prints.

        Args:
            spec: the rules under which the prompt is read.
            rows: B strings of T characters: `t` text, `I` image token, `V` video token (where the
                spec has an id of it), `A` audio token, `<` and `>` vision start and end, or those
                of a slice, `[` and `]` video start and end, `(` and `)` audio start and end, or
                those of a thumbnail, `n` newline. Markers of which the spec has no id are text.
            mask: B strings of T characters `1` and `0`, or None: no mask.
            image_grid_thw: `(t, h, w)` in patches for each image, or None.
            video_grid_thw: the same for videos, or None.
            second_per_grid_ts: seconds of a temporal step for each video, or None.
            audio_seqlens: mel frames of each audio, or None.
            second_per_grids: seconds of a temporal step for each video of an omni family, or None.
            use_audio_in_video: whether videos come with their sound, all or each.
            target_sizes: `(h, w)` in patches for each crop of an image, or None.
            target_sizes_videos: the same for videos, or None.
            images_per_sample: the number of grids of each row, or None.

        Raises:
            TypeError: if `spec` is no MRopeSpec.
            ValueError: if `rows` are not strings of one length of these characters.
        """
        check_spec(spec)
        token_ids = symbols_of(spec)
        _check_symbols("rows", rows, "".join(token_ids))
        if mask is not None:
            _check_symbols("mask", mask, "0123456789")
        ids = [[token_ids[symbol] for symbol in row] for row in rows]
        kept = [[int(value) for value in row] for row in mask] if mask is not None else None
        return cls(
            input_ids=torch.tensor(ids, dtype=torch.int64),
            attention_mask=_tensor("mask", kept),
            mm_token_type_ids=_tensor("rows", _token_types(spec, ids, kept)),
            image_grid_thw=_tensor("image_grid_thw", image_grid_thw, -1, 3),
            video_grid_thw=_tensor("video_grid_thw", video_grid_thw, -1, 3),
            spec=spec,
            second_per_grid_ts=second_per_grid_ts,
            audio_seqlens=_tensor("audio_seqlens", audio_seqlens, -1),
            second_per_grids=_tensor("second_per_grids", second_per_grids, -1, dtype=torch.float32),
            use_audio_in_video=use_audio_in_video,
            target_sizes=_tensor("target_sizes", target_sizes, -1, 2),
            target_sizes_videos=_tensor("target_sizes_videos", target_sizes_videos, -1, 2),
            images_per_sample=_tensor("images_per_sample", images_per_sample, -1),
        )

    @property
    def symbols(self) -> list[str]:
        """The rows as `from_symbols` takes them: B strings of T characters."""
        names = {token_id: symbol for symbol, token_id in symbols_of(self.spec).items()}
        return ["".join(names.get(token, "t") for token in row) for row in self.input_ids.tolist()]

    @property
    def mask(self) -> list[str]:
        """The mask as `from_symbols` takes it, of ones where there is none."""
        mask = self.attention_mask
        rows = torch.ones_like(self.input_ids) if mask is None else mask
        return ["".join(map(str, row)) for row in rows.tolist()]

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that a model's `get_rope_index` takes.

        `second_per_grid_ts` is among them where the family uses seconds, or they are given.
        """
        names = ["input_ids", *family_of(self.spec).arguments]
        arguments = {name: getattr(self, name) for name in names}
        if self.spec.video_time != "seconds" and self.second_per_grid_ts is None:
            arguments.pop("second_per_grid_ts", None)
        return arguments

    def expected(
        self, *, by_types: bool = False, allow_left_over: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reference's answer.

        Args:
            by_types: whether tokens are told apart by `mm_token_type_ids` instead of the ids, where
                the family takes both.
            allow_left_over: whether to ignore grids and audio beyond the last one used. For
                families with a shared rule and omni ones.

        Returns:
            `position_ids`, (A, B, T) in the dtype of `input_ids` or that of the spec, and
            `rope_deltas`, (B, 1) int64, or float32 where positions are.

        Raises:
            Refusal: if the prompt has no positions.
        """
        options = {"allow_left_over": True} if allow_left_over else {}
        if by_types:
            options["mm_token_type_ids"] = _list(self.mm_token_type_ids)
        position_ids, rope_deltas = self._answer(**options)
        dtype = self._dtype()
        shape = (len(position_ids), *self.input_ids.shape)
        return (
            torch.tensor(position_ids, dtype=dtype).reshape(shape),
            torch.tensor(rope_deltas, dtype=dtype if dtype.is_floating_point else torch.int64),
        )

    def expected_decode(self) -> list[list[tuple[int, ...]]]:
        """Return the positions that follow each row's prompt, of glm_image.

        Raises:
            Refusal: if the prompt has no positions.
        """
        decode: list[list[tuple[int, ...]]] = []
        self._answer(decode=decode)
        return decode

    def _answer(self, **options: Any) -> reference.Answer:
        family = family_of(self.spec)
        lists = {"input_ids": self.input_ids.tolist()}
        for name in family.arguments:
            value = _list(getattr(self, name))
            if value is not None and name != "mm_token_type_ids":
                lists[name] = value
        if "second_per_grid_ts" in lists:
            lists |= seconds_of(self.second_per_grid_ts)
        return family.answer(self.spec, {**lists, **options})

    def _dtype(self) -> torch.dtype:
        dtype = self.spec.position_dtype
        if self.image_grid_thw is None and self.video_grid_thw is None:
            dtype = getattr(self.spec.own_rule, "text_dtype", dtype)
        return {"ids": self.input_ids.dtype, "float32": torch.float32}.get(dtype, torch.int64)

    def __repr__(self) -> str:
        parts = [_spec_repr(self.spec), repr(self.symbols)]
        if self.attention_mask is not None:
            parts.append(f"mask={self.mask}")
        for name in family_of(self.spec).arguments:
            value = getattr(self, name)
            if name == "second_per_grid_ts" and value is not None:
                parts.append(f"{name}={_seconds_repr(value)}")
            elif value is not None and value is not False and name not in _FROM_ROWS:
                parts.append(f"{name}={_list(value)}")
        return f"Prompt.from_symbols({', '.join(parts)})"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        # Hypothesis and IPython ask for this, and would otherwise list the tensors of a dataclass.
        printer.text(repr(self))


_FROM_ROWS = ("mm_token_type_ids", "attention_mask")


def _token_types(spec: MRopeSpec, ids: list[list[int]], mask: list[list[int]] | None) -> Rows:
    if mask is None or spec.mask_rule == "ignore":
        mask = [[1] * len(row) for row in ids]
    rows = []
    for row, kept in zip(ids, mask, strict=True):
        valid = (token for token, keep in zip(row, kept, strict=True) if keep == 1)
        types = iter(reference.token_types(valid, **type_rules_of(spec)))
        rows.append([next(types) if keep == 1 else reference.TEXT for keep in kept])
    return rows


def _tensor(
    name: str, values: Sequence[Any] | None, *shape: int, dtype: torch.dtype = torch.int64
) -> torch.Tensor | None:
    if values is None:
        return None
    try:
        tensor = torch.tensor(values, dtype=dtype)
        return tensor.reshape(shape) if shape else tensor
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a list of numbers, or of rows, got {values!r}") from error


def _check_symbols(name: str, rows: object, symbols: str) -> None:
    """Check that `rows` are strings of these symbols, all of one length."""
    if isinstance(rows, str) or not isinstance(rows, Sequence):
        raise ValueError(f"{name} must be a list of strings, one a row, got {rows!r}")
    for number, row in enumerate(rows):
        if not isinstance(row, str):
            raise ValueError(f"{name} must be strings, got {row!r} as row {number}")
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{name} must be strings of one length, got {row!r} as row {number} and "
                f"{rows[0]!r} as row 0"
            )
        for at, symbol in enumerate(row):
            if symbol not in symbols:
                raise ValueError(
                    f"{name} must be made of the characters {symbols!r}, got {symbol!r} in row "
                    f"{number} at {at}"
                )


def _list(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _seconds_repr(seconds: Seconds) -> str:
    values = [repr(value) if isfinite(value) else f"float('{value}')" for value in _list(seconds)]
    listed = f"[{', '.join(values)}]"
    if not isinstance(seconds, torch.Tensor):
        return listed
    return f"torch.tensor({listed}, dtype={seconds.dtype})"


def _spec_repr(spec: MRopeSpec) -> str:
    try:
        preset = MRopeSpec.for_model(spec.model_type, convention=spec.convention)
    except ValueError:
        return repr(spec)
    changes = ""
    for field in fields(spec):
        value = getattr(spec, field.name)
        if value != getattr(preset, field.name):
            changes += f", {field.name}={value!r}"
    return f"MRopeSpec.for_model({spec.model_type!r}, convention={spec.convention!r}{changes})"
