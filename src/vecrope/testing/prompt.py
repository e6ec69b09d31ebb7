"""One prompt to test a function with: its arguments, and what they have to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import isfinite
from typing import Any

import torch

from vecrope.spec import MRopeSpec
from vecrope.testing import reference
from vecrope.testing.rules import rules_of, seconds_of, type_rules_of

Seconds = torch.Tensor | Sequence[float]


@dataclass(frozen=True, eq=False, repr=False)
class Prompt:
    """A batch of token rows with its mask and its grids, as a model would be given it.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64, 1 for a token and 0 for none, or None: all are tokens.
        mm_token_type_ids: (B, T) int64 or None: 0 text, 1 image, 2 video, read off the unmasked ids
            by the spec's marker rule, and 0 at masked places that the spec leaves out.
        image_grid_thw: (num_images, 3) int64 or None: `(t, h, w)` in patches.
        video_grid_thw: (num_videos, 3) int64 or None.
        spec: the rules under which the prompt is read.
        second_per_grid_ts: (num_videos,) float32 or float64, a list of floats, or None.

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

    @classmethod
    def from_symbols(
        cls,
        spec: MRopeSpec,
        rows: Sequence[str],
        *,
        mask: Sequence[str] | None = None,
        image_grid_thw: Sequence[Sequence[int]] | None = None,
        video_grid_thw: Sequence[Sequence[int]] | None = None,
        second_per_grid_ts: Seconds | None = None,
    ) -> Prompt:
        """Build a prompt from rows of one character a token. It is what `repr` prints.

        Args:
            spec: the rules under which the prompt is read.
            rows: B strings of T characters: `t` text, `I` image token, `V` video token (where the
                spec has an id of it), `<` and `>` vision start and end, `[` and `]` video start and
                end. Markers of which the spec has no id are text.
            mask: B strings of T characters `1` and `0`, or None: no mask.
            image_grid_thw: `(t, h, w)` in patches for each image, or None.
            video_grid_thw: the same for videos, or None.
            second_per_grid_ts: seconds of a temporal step for each video, or None.
        """
        token_ids = _token_ids(spec)
        ids = [[token_ids[symbol] for symbol in row] for row in rows]
        kept = [[int(value) for value in row] for row in mask] if mask is not None else None
        return cls(
            input_ids=torch.tensor(ids, dtype=torch.int64),
            attention_mask=None if kept is None else torch.tensor(kept, dtype=torch.int64),
            mm_token_type_ids=torch.tensor(_token_types(spec, ids, kept), dtype=torch.int64),
            image_grid_thw=_grid_tensor(image_grid_thw),
            video_grid_thw=_grid_tensor(video_grid_thw),
            spec=spec,
            second_per_grid_ts=second_per_grid_ts,
        )

    @property
    def symbols(self) -> list[str]:
        """The rows as `from_symbols` takes them: B strings of T characters."""
        names = {token_id: symbol for symbol, token_id in _token_ids(self.spec).items()}
        return ["".join(names.get(token, "t") for token in row) for row in self.input_ids.tolist()]

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that a model's `get_rope_index` takes.

        `second_per_grid_ts` is among them where the family uses seconds, or they are given.
        """
        arguments: dict[str, Any] = {
            "input_ids": self.input_ids,
            "mm_token_type_ids": self.mm_token_type_ids,
            "image_grid_thw": self.image_grid_thw,
            "video_grid_thw": self.video_grid_thw,
            "attention_mask": self.attention_mask,
        }
        if self.spec.video_time == "seconds" or self.second_per_grid_ts is not None:
            arguments["second_per_grid_ts"] = self.second_per_grid_ts
        return arguments

    def expected(self, *, allow_left_over: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reference's answer, read off the ids (`mm_token_type_ids` is not used).

        Args:
            allow_left_over: whether to ignore grids beyond the last one used.

        Returns:
            `position_ids`, (3, B, T) in the dtype of `input_ids` or that of the spec, and
            `rope_deltas`, (B, 1) int64.

        Raises:
            Refusal: if the prompt has no positions.
        """
        position_ids, rope_deltas = reference.get_rope_index(
            self.input_ids.tolist(),
            image_grid_thw=_rows(self.image_grid_thw) or (),
            video_grid_thw=_rows(self.video_grid_thw) or (),
            attention_mask=_rows(self.attention_mask),
            allow_left_over=allow_left_over,
            **seconds_of(self.second_per_grid_ts),
            **rules_of(self.spec),
        )
        of_ids = self.spec.position_dtype == "ids"
        return (
            torch.tensor(position_ids, dtype=self.input_ids.dtype if of_ids else torch.int64),
            torch.tensor(rope_deltas, dtype=torch.int64),
        )

    def __repr__(self) -> str:
        parts = [_spec_repr(self.spec), repr(self.symbols)]
        if self.attention_mask is not None:
            mask = ["".join(map(str, row)) for row in self.attention_mask.tolist()]
            parts.append(f"mask={mask}")
        for name in ("image_grid_thw", "video_grid_thw"):
            grids = _rows(getattr(self, name))
            if grids is not None:
                parts.append(f"{name}={grids}")
        if self.second_per_grid_ts is not None:
            parts.append(f"second_per_grid_ts={_seconds_repr(self.second_per_grid_ts)}")
        return f"Prompt.from_symbols({', '.join(parts)})"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        # Hypothesis and IPython ask for this, and would otherwise list the tensors of a dataclass.
        printer.text(repr(self))


def _token_ids(spec: MRopeSpec) -> dict[str, int]:
    special = {
        "I": spec.image_token_id,
        "V": spec.video_token_id,
        "<": spec.vision_start_token_id,
        "[": spec.video_start_token_id,
        "]": spec.video_end_token_id,
    }
    given = {symbol: token_id for symbol, token_id in special.items() if token_id is not None}
    free = (token_id for token_id in count() if token_id not in given.values())
    text = (symbol for symbol in "t<>[]" if symbol not in given)
    return {**{symbol: next(free) for symbol in text}, **given}


def _token_types(
    spec: MRopeSpec, ids: list[list[int]], mask: list[list[int]] | None
) -> list[list[int]]:
    rows = []
    for row, row_ids in enumerate(ids):
        values = [1] * len(row_ids) if mask is None or spec.mask_rule == "ignore" else mask[row]
        kept = [value == 1 for value in values]
        valid = (token for token, keep in zip(row_ids, kept, strict=True) if keep)
        types = iter(reference.token_types(valid, **type_rules_of(spec)))
        rows.append([next(types) if keep else reference.TEXT for keep in kept])
    return rows


def _grid_tensor(grids: Sequence[Sequence[int]] | None) -> torch.Tensor | None:
    return None if grids is None else torch.tensor(grids, dtype=torch.int64).reshape(-1, 3)


def _rows(tensor: torch.Tensor | None) -> list[list[int]] | None:
    return None if tensor is None else tensor.tolist()


def _seconds_repr(seconds: Seconds) -> str:
    given = seconds.tolist() if isinstance(seconds, torch.Tensor) else seconds
    values = [repr(value) if isfinite(value) else f"float('{value}')" for value in given]
    listed = f"[{', '.join(values)}]"
    if not isinstance(seconds, torch.Tensor):
        return listed
    return f"torch.tensor({listed}, dtype={seconds.dtype})"


def _spec_repr(spec: MRopeSpec) -> str:
    try:
        preset = MRopeSpec.for_model(spec.model_type, convention=spec.convention)
    except ValueError:
        return repr(spec)
    if spec != preset:
        return repr(spec)
    return f"MRopeSpec.for_model({spec.model_type!r}, convention={spec.convention!r})"
