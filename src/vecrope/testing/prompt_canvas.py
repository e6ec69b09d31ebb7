"""One prompt with pictures on canvases: its arguments, and what they have to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from vecrope.families.rules import DownsampleMode, MiniCPMV47
from vecrope.spec import Convention, MRopeSpec
from vecrope.testing import reference_canvas
from vecrope.testing.reference import IMAGE, VIDEO

__all__ = ["CanvasPrompt", "canvas_spec", "rules_of"]

_MARKERS = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
_RULES = ("mask_rule", "padding_value", "delta_length")


def canvas_spec(convention: Convention, downsample_mode: DownsampleMode = "16x") -> MRopeSpec:
    """Return a spec of `minicpmv4_7` with small ids, for that family has no defaults."""
    config = {
        "model_type": "minicpmv4_7",
        "image_token_id": 20,
        "video_token_id": 21,
        "downsample_mode": downsample_mode,
        "uses_mrope_canvas": True,
        **dict(zip(_MARKERS, range(10, 15), strict=True)),
    }
    return MRopeSpec.from_config(config, convention=convention)


@dataclass(frozen=True, eq=False, repr=False)
class CanvasPrompt:
    """A batch of token rows with its mask and the sizes of its crops.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64, 1 for a token and 0 for none, or None: all are tokens.
        mm_token_type_ids: (B, T) int64: 0 text, 1 image, 2 video, by the id alone.
        target_sizes: (num_image_crops, 2) int64 or None: `(h, w)` in patches.
        target_sizes_videos: (num_video_crops, 2) int64 or None.
        spec: the rules under which the prompt is read.

    Example:
        >>> spec = canvas_spec("sglang")
        >>> prompt = CanvasPrompt.from_symbols(spec, ["t(II)t"], target_sizes=[[4, 8]])
        >>> position_ids, rope_deltas = prompt.expected()
        >>> position_ids[:, 0]
        tensor([[0, 1, 1, 1, 1, 4],
                [0, 0, 1, 1, 2, 4],
                [0, 0, 1, 2, 3, 4]])
        >>> prompt
        CanvasPrompt.from_symbols(canvas_spec('sglang'), ['t(II)t'], target_sizes=[[4, 8]])
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    mm_token_type_ids: torch.Tensor
    target_sizes: torch.Tensor | None
    target_sizes_videos: torch.Tensor | None
    spec: MRopeSpec

    @classmethod
    def from_symbols(
        cls,
        spec: MRopeSpec,
        rows: Sequence[str],
        *,
        mask: Sequence[str] | None = None,
        target_sizes: Sequence[Sequence[int]] | None = None,
        target_sizes_videos: Sequence[Sequence[int]] | None = None,
    ) -> CanvasPrompt:
        """Build a prompt from rows of one character a token. It is what `repr` prints.

        Args:
            spec: the rules under which the prompt is read.
            rows: B strings of T characters: `t` text, `I` and `V` placeholders of images and
                videos, `(` and `)` around a thumbnail, `<` and `>` around a slice, `n` newline.
            mask: B strings of T characters `1` and `0`, or None: no mask.
            target_sizes: `(h, w)` in patches for each crop of an image, or None.
            target_sizes_videos: the same for videos.
        """
        token_ids = _token_ids(spec)
        types = {"I": IMAGE, "V": VIDEO}
        return cls(
            input_ids=torch.tensor([[token_ids[symbol] for symbol in row] for row in rows]).long(),
            attention_mask=None
            if mask is None
            else torch.tensor([list(map(int, m)) for m in mask]),
            mm_token_type_ids=torch.tensor([[types.get(s, 0) for s in row] for row in rows]).long(),
            target_sizes=_size_tensor(target_sizes),
            target_sizes_videos=_size_tensor(target_sizes_videos),
            spec=spec,
        )

    @property
    def symbols(self) -> list[str]:
        """The rows as `from_symbols` takes them: B strings of T characters."""
        names = {token_id: symbol for symbol, token_id in _token_ids(self.spec).items()}
        return ["".join(names[token] for token in row) for row in self.input_ids.tolist()]

    def arguments(self) -> dict[str, torch.Tensor | None]:
        """Return the keyword arguments that a model's `get_rope_index` takes."""
        return {
            "input_ids": self.input_ids,
            "mm_token_type_ids": self.mm_token_type_ids,
            "target_sizes": self.target_sizes,
            "target_sizes_videos": self.target_sizes_videos,
            "attention_mask": self.attention_mask,
        }

    def expected(self, *, by_types: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reference's answer.

        Args:
            by_types: whether crops are read off `mm_token_type_ids` instead of the ids.

        Returns:
            `position_ids`, (3, B, T) int64, and `rope_deltas`, (B, 1) int64.

        Raises:
            Refusal: if the prompt has no positions.
        """
        position_ids, rope_deltas = reference_canvas.get_rope_index(
            self.input_ids.tolist(),
            target_sizes=_rows(self.target_sizes) or (),
            target_sizes_videos=_rows(self.target_sizes_videos) or (),
            attention_mask=_rows(self.attention_mask),
            mm_token_type_ids=_rows(self.mm_token_type_ids) if by_types else None,
            **rules_of(self.spec),
        )
        shape = (3, *self.input_ids.shape)
        return torch.tensor(position_ids).long().view(shape), torch.tensor(rope_deltas)

    def __repr__(self) -> str:
        mode = "" if _rule(self.spec).downsample_mode == "16x" else ", '4x'"
        parts = [f"canvas_spec({self.spec.convention!r}{mode})", repr(self.symbols)]
        if self.attention_mask is not None:
            parts.append(f"mask={[''.join(map(str, m)) for m in self.attention_mask.tolist()]}")
        for name in ("target_sizes", "target_sizes_videos"):
            sizes = _rows(getattr(self, name))
            if sizes is not None:
                parts.append(f"{name}={sizes}")
        return f"CanvasPrompt.from_symbols({', '.join(parts)})"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        # Hypothesis and IPython ask for this, and would otherwise list the tensors of a dataclass.
        printer.text(repr(self))


def rules_of(spec: MRopeSpec) -> dict[str, Any]:
    """Return the arguments of `reference_canvas.get_rope_index` that a spec stands for."""
    rule = _rule(spec)
    return {
        "image_token_id": spec.image_token_id,
        "video_token_id": spec.video_token_id,
        "markers": tuple(getattr(rule, name) for name in _MARKERS),
        "downsample_factor": {"16x": 4, "4x": 2}[rule.downsample_mode],
        "newline_closes": rule.newline_closes,
        "crop_rule": rule.crop_rule,
        **{name: getattr(spec, name) for name in _RULES},
    }


def _rule(spec: MRopeSpec) -> MiniCPMV47:
    if not isinstance(spec.own_rule, MiniCPMV47):
        raise ValueError(f"{spec.model_type!r} has no MiniCPMV47, got {spec.own_rule!r}")
    return spec.own_rule


def _token_ids(spec: MRopeSpec) -> dict[str, int]:
    ids = [getattr(_rule(spec), name) for name in _MARKERS]
    special = dict(zip("()<>n", ids, strict=True))
    for symbol, token_id in (("I", spec.image_token_id), ("V", spec.video_token_id)):
        if token_id is not None:
            special[symbol] = token_id
    free = next(token_id for token_id in count() if token_id not in special.values())
    return {"t": free, **special}


def _size_tensor(sizes: Sequence[Sequence[int]] | None) -> torch.Tensor | None:
    return None if sizes is None else torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2)


def _rows(tensor: torch.Tensor | None) -> list[list[int]] | None:
    return None if tensor is None else tensor.tolist()
