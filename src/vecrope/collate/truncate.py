"""`truncate`: a shorter sample that holds no part of a picture or a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vecrope import checks
from vecrope.collate import fields
from vecrope.collate.number import check_alone
from vecrope.collate.read import read_sample
from vecrope.collate.samples import Sample
from vecrope.collate.spans import find_spans
from vecrope.spec import MRopeSpec


@dataclass(frozen=True)
class Dropped:
    """What `truncate` has taken out of a sample."""

    tokens: int
    images: int
    videos: int
    audios: int
    no_label_left: bool  # there are labels, and all that a token could predict are -100


def truncate(
    sample: Mapping[str, Any],
    spec: MRopeSpec,
    max_length: int,
    side: Literal["left", "right"] = "right",
    *,
    start_token_ids: Sequence[int] = (),
    end_token_ids: Sequence[int] = (),
) -> tuple[dict[str, Any], Dropped]:
    """Return a sample of at most `max_length` tokens that still fits its media.

    A picture or a clip that the cut touches is dropped entirely, with its markers, sound, grids,
    pixels and seconds, so that the result may be shorter than `max_length`. A clip is never
    shortened.

    Args:
        sample: as for `vecrope.collate`.
        spec: of any family but those whose crops or frames nothing says which picture they are of:
            minicpmv4_7, isaac and bailing_moe_v3_vl.
        max_length: the most tokens that may remain, at least 1.
        side: the side that is cut off.
        start_token_ids: ids that stand right before a picture and belong to it, such as
            `[config.vision_start_token_id]`, besides those that the spec has.
        end_token_ids: ids that stand right behind it.

    Returns:
        The sample, with tokens of shape (T,), and what was dropped. Positions of a sample that was
        numbered are left out where anything is dropped. Names that `collate` does not know are
        kept as they are. A sample without a token left is returned, too: `collate` refuses it.

    Raises:
        TypeError: for a wrong type.
        ValueError: for a sample that does not fit its media, and for a family that is not known
            here.

    Example:
        >>> import vecrope
        >>> spec = vecrope.MRopeSpec.for_model("qwen2_vl", convention="transformers")
        >>> image = spec.image_token_id
        >>> sample = {"input_ids": [7, image, image, 8], "image_grid_thw": [[1, 2, 4]]}
        >>> shorter, dropped = vecrope.truncate(sample, spec, 2)
        >>> shorter, dropped.images
        ({'input_ids': tensor([7])}, 1)
    """
    if not isinstance(spec, MRopeSpec):
        raise TypeError(f"spec must be an MRopeSpec, got {type(spec).__name__}")
    checks.check_int("max_length", max_length, 1)
    if side not in get_args(Literal["left", "right"]):
        raise ValueError(f"side must be 'left' or 'right', got {side!r}")
    read = read_sample(sample, spec, "the sample", keep_extra=True)
    check_alone(read, spec)
    length = read.length
    keep = range(length)
    kept = {kind: list(range(read.counts[kind])) for kind in ("image", "video", "audio")}
    if length > max_length:
        cut = max_length if side == "right" else length - max_length
        spans = find_spans(read, spec, start_token_ids, end_token_ids)
        for span in spans:
            if span.start < cut < span.stop:
                cut = span.start if side == "right" else span.stop
                break
        keep = range(cut) if side == "right" else range(cut, length)
        remaining = [span for span in spans if span.start >= keep.start and span.stop <= keep.stop]
        placed = {kind: _ordinals(spans, kind) for kind in kept}
        stay = {kind: _ordinals(remaining, kind) for kind in kept}
        # Rows of zeros stand nowhere, and stay.
        kept = {
            kind: [at for at in kept[kind] if at in stay[kind] or at not in placed[kind]]
            for kind in kept
        }
    dropped = Dropped(
        tokens=length - len(keep),
        images=read.counts["image"] - len(kept["image"]),
        videos=read.counts["video"] - len(kept["video"]),
        audios=read.counts["audio"] - len(kept["audio"]),
        no_label_left="labels" in read.tokens
        and bool((read.tokens["labels"][keep.start + 1 : keep.stop] == fields.IGNORED_LABEL).all()),
    )
    return _taken(read, keep, kept, whole=dropped.tokens == 0), dropped


def _ordinals(spans: Sequence[Any], kind: str) -> set[int]:
    return {ordinal for span in spans for ordinal in span.media.get(kind, ())}


def _taken(
    sample: Sample, keep: range, kept: dict[str, list[int]], *, whole: bool
) -> dict[str, Any]:
    """Return the sample as a mapping again, of its tokens `keep` and media `kept`."""
    taken: dict[str, Any] = {
        name: row[keep.start : keep.stop].clone() for name, row in sample.tokens.items()
    }
    for name, value in sample.media.items():
        part = value if whole else _part(name, value, sample, kept)
        if len(part):
            taken[name] = part
    if any(sample.sound):
        taken["use_audio_in_video"] = [sample.sound[at] for at in kept["video"]]
    if whole and sample.numbered is not None:
        taken["position_ids"], taken["rope_deltas"] = sample.numbered
    return {**taken, **sample.extra}


def _part(name: str, value: Any, sample: Sample, kept: dict[str, list[int]]) -> Any:
    """Return what of a medium remains."""
    for kind in ("image", "video"):
        if name == fields.GRIDS[kind]:
            return value[kept[kind]]
        if name == fields.PIXELS[kind]:
            grids = sample.media[fields.GRIDS[kind]]
            # Of glm_image's grids the last have no patches yet, and give empty slices.
            ends = [0, *grids.prod(1).cumsum(0).tolist()]
            return torch.cat([value[:0], *(value[ends[at] : ends[at + 1]] for at in kept[kind])])
    if name in fields.SECONDS:
        if isinstance(value, Tensor):
            return value[kept["video"]]
        return [value[at] for at in kept["video"]]
    return value[kept["audio"]]
