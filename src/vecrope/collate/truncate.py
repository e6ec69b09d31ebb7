"""`truncate`: a shorter sample that holds no part of a picture or a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from vecrope import checks
from vecrope.collate import fields
from vecrope.collate.join import PaddingSide
from vecrope.collate.number import number_alone
from vecrope.collate.read import read_samples, read_token_ids
from vecrope.collate.samples import Sample
from vecrope.collate.spans import Span, find_spans
from vecrope.spec import MRopeSpec

_KINDS = ("image", "video", "audio")
# Whose rows a medium has.
_KIND_OF = {
    **{
        names[kind]: kind for names in (fields.GRIDS, fields.CROPS, fields.PIXELS) for kind in names
    },
    **dict.fromkeys(fields.SECONDS, "video"),
    **dict.fromkeys(fields.AUDIO, "audio"),
}


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
    side: PaddingSide = "right",
    *,
    start_token_ids: Sequence[int] = (),
    end_token_ids: Sequence[int] = (),
) -> tuple[dict[str, Any], Dropped]:
    """Return a sample of at most `max_length` tokens that still fits its media.

    A picture or a clip that the cut goes through is dropped entirely, with its markers, sound,
    grids, pixels and seconds. The result may therefore be shorter than `max_length`. A clip is
    never shortened.

    Args:
        sample: as for `vecrope.collate`.
        spec: of any family. Touching clips of minicpmv4_7 count as one clip, because nothing in the
            sample tells them apart.
        max_length: the largest number of tokens to keep, at least 1.
        side: the side to cut off.
        start_token_ids: ids right before a picture that belong to it, such as
            `[config.vision_start_token_id]`, in addition to those of the spec.
        end_token_ids: ids right after a picture that belong to it.

    Returns:
        The sample, with tokens of shape (T,), and what was dropped. If anything was dropped, the
        positions of the sample are left out. Keys that `collate` does not know are kept as they
        are. A sample may have no token left; `collate` refuses it.

    Raises:
        TypeError: for a wrong type.
        ValueError: for a sample that does not fit its media.

    Example:
        >>> import vecrope
        >>> spec = vecrope.MRopeSpec.for_model("qwen2_vl", convention="transformers")
        >>> image = spec.image_token_id
        >>> sample = {"input_ids": [7, image, image, 8], "image_grid_thw": [[1, 2, 4]]}
        >>> shorter, dropped = vecrope.truncate(sample, spec, 2)
        >>> shorter, dropped.images
        ({'input_ids': tensor([7])}, 1)
    """
    checks.check_spec(spec)
    checks.check_int("max_length", max_length, 1)
    checks.check_choice("side", side, PaddingSide)
    start = read_token_ids("start_token_ids", start_token_ids)
    end = read_token_ids("end_token_ids", end_token_ids)
    read = read_samples([sample], spec, keep_extra=True, names=["the sample"])[0]
    number_alone(read, spec, "the sample")
    length = read.length
    keep, gone = range(length), []
    if length > max_length:
        cut = max_length if side == "right" else length - max_length
        spans = find_spans(read, spec, start, end)
        for span in spans:
            if span.start < cut < span.stop:
                cut = span.start if side == "right" else span.stop
                break
        keep = range(cut) if side == "right" else range(cut, length)
        gone = [span for span in spans if span.start < keep.start or span.stop > keep.stop]
    dropped = Dropped(
        tokens=length - len(keep),
        images=_count(gone, "image"),
        videos=_count(gone, "video"),
        audios=_count(gone, "audio"),
        no_label_left="labels" in read.tokens
        and bool((read.tokens["labels"][keep.start + 1 : keep.stop] == fields.IGNORED_LABEL).all()),
    )
    return _taken(read, keep, gone), dropped


def _count(spans: Sequence[Span], kind: str) -> int:
    return sum(len(span.media.get(kind, ())) for span in spans)


def _taken(sample: Sample, keep: range, gone: Sequence[Span]) -> dict[str, Any]:
    """Return the sample as a mapping again, of its tokens `keep` and without the media `gone`."""
    whole = len(keep) == sample.length
    taken: dict[str, Any] = {
        name: row[keep.start : keep.stop].clone() for name, row in sample.tokens.items()
    }
    dropped = {kind: {row for span in gone for row in span.rows(kind)} for kind in _KINDS}
    for name, value in sample.media.items():
        part = value if whole else _part(name, value, sample, dropped)
        if len(part):
            taken[name] = part
    if any(sample.sound):
        videos = enumerate(sample.sound)
        taken["use_audio_in_video"] = [flag for at, flag in videos if at not in dropped["video"]]
    if whole and sample.numbered is not None:
        taken["position_ids"], taken["rope_deltas"] = sample.numbered
    return {**taken, **sample.extra}


def _part(name: str, value: Any, sample: Sample, dropped: Mapping[str, set[int]]) -> Any:
    """Return what of a medium remains."""
    if name == "images_per_sample":
        return value - len(dropped["image"])
    kind = _KIND_OF[name]
    if name not in fields.PIXELS.values():
        kept = [at for at in range(len(value)) if at not in dropped[kind]]
        return value[kept] if isinstance(value, Tensor) else [value[at] for at in kept]
    grids = sample.media.get(fields.GRIDS[kind])
    # The patches of crops stand side by side, each as wide as it is high.
    rows, dim, width = (
        (grids, 0, 1)
        if grids is not None
        else (sample.media[fields.CROPS[kind]], -1, value.shape[-2])
    )
    # Of glm_image's grids the last have no patches yet.
    ends = [0, *accumulate(prod(row) * width for row in rows.tolist())]
    size = value.shape[dim]
    pieces = [
        value.narrow(dim, start, min(stop, size) - start)
        for at, (start, stop) in enumerate(pairwise(ends))
        if at not in dropped[kind] and start < size
    ]
    return torch.cat(pieces, dim) if pieces else value[:0]
