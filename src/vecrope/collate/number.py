"""The positions of every sample, none of which sees another's media.

Where the placeholders of each sample are as many as its own grids ask for, images and videos each
for themselves, no grid of the joined batch can go to another sample, and the batch is numbered in
one call. Where that cannot be told by counting ids or types, each sample is numbered alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.collate import fields
from vecrope.collate.join import PaddingSide, join_seconds
from vecrope.collate.samples import Sample
from vecrope.inputs import Inputs
from vecrope.rope_index import rope_index_of
from vecrope.spec import MRopeSpec

_TYPES = {"image": 1, "video": 2}


def number_padded(
    samples: Sequence[Sample],
    spec: MRopeSpec,
    batch: Mapping[str, Tensor],
    side: PaddingSide,
    behind: int,
) -> tuple[Tensor, Tensor]:
    """Return positions (3, B, T) and deltas (B, 1) of padded rows, as the upstream numbers them.

    Rows that are padded on the left have `behind` columns of padding on the right.
    """
    if samples[0].numbered is not None:
        return _place_numbered(samples, spec, batch["input_ids"].shape[1], side, behind)
    names = ("input_ids", "attention_mask", "mm_token_type_ids")
    if not _told_by_counts(samples, spec):
        rows = []
        for index, sample in enumerate(samples):
            row = sample.inputs(spec)
            padded: dict[str, Any] = {
                name: batch[name][index : index + 1]
                for name in names
                if name == "attention_mask" or getattr(row, name) is not None
            }
            rows.append(row._replace(**padded))
        answers = _one_by_one(rows, spec)
        return torch.cat([one for one, _ in answers], 1), torch.cat([one for _, one in answers])
    _check_counts(samples, spec)
    tokens: dict[str, Any] = {name: batch[name] for name in names if name in batch}
    return _together(_joined_media(samples, spec)._replace(**tokens), samples, spec)


def number_packed(samples: Sequence[Sample], spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    """Return positions (3, 1, N) and deltas (B, 1) of samples one behind the other."""
    numbered = [sample.numbered for sample in samples if sample.numbered is not None]
    if not numbered and not _told_by_counts(samples, spec):
        numbered = _one_by_one([sample.inputs(spec) for sample in samples], spec)
    if numbered:
        return torch.cat([one for one, _ in numbered], 2), torch.cat([one for _, one in numbered])
    _check_counts(samples, spec)
    tokens: dict[str, Any] = {
        name: torch.cat([sample.tokens[name] for sample in samples])
        for name in ("input_ids", "mm_token_type_ids")
        if name in samples[0].tokens
    }
    bounds = torch.tensor([0, *map(len, samples)]).cumsum(0)
    joined = _joined_media(samples, spec)._replace(**tokens, cu_seqlens=bounds)
    positions, deltas = _together(joined, samples, spec)
    return positions[:, None], deltas


def check_alone(sample: Sample, spec: MRopeSpec) -> None:
    """Check that a sample fits its own media.

    Raises:
        TypeError: for a wrong type.
        ValueError: where it does not fit.
    """
    rope_index_of(_with_mask(sample, spec), spec)


def _told_by_counts(samples: Sequence[Sample], spec: MRopeSpec) -> bool:
    """Say whether counting ids or types tells images from videos."""
    if spec.own_rule is not None:
        return False
    if spec.marker_rule not in ("last", "count") or "mm_token_type_ids" in samples[0].tokens:
        return True
    return not all(any(sample.count(kind) for sample in samples) for kind in fields.GRIDS)


def _check_counts(samples: Sequence[Sample], spec: MRopeSpec) -> None:
    """Check that the placeholders of each sample are as many as its own grids describe."""
    by_types = "mm_token_type_ids" in samples[0].tokens
    ids = {"image": spec.image_token_id, "video": spec.video_token_id}
    if spec.marker_rule in ("last", "count"):
        ids["video"] = spec.image_token_id
    for kind, name in fields.GRIDS.items():
        grids = [sample.media[name] for sample in samples if name in sample.media]
        if not grids:
            continue
        patches = iter(torch.cat(grids).prod(1, dtype=torch.int64).tolist())
        merged = spec.spatial_merge_size**2 * (spec.temporal_merge_size if kind == "video" else 1)
        wanted = _TYPES[kind] if by_types else ids[kind]
        for index, sample in enumerate(samples):
            tokens = sample.tokens["mm_token_type_ids" if by_types else "input_ids"]
            found = torch.zeros_like(tokens).bool() if wanted is None else tokens.eq(wanted)
            mask = sample.tokens.get("attention_mask")
            if mask is not None and spec.mask_rule == "skip":
                found &= mask.bool()
            expected = sum(next(patches) for _ in range(sample.count(kind))) // merged
            if int(found.sum()) != expected:
                _number_alone(index, sample, spec)


def _number_alone(index: int, sample: Sample, spec: MRopeSpec) -> None:
    """Number a sample as a row of its own, so that what is wrong with it is raised."""
    _one(index, _with_mask(sample, spec), spec)


def _with_mask(sample: Sample, spec: MRopeSpec) -> Inputs:
    mask = sample.tokens.get("attention_mask")
    return sample.inputs(spec)._replace(attention_mask=None if mask is None else mask[None])


def _together(joined: Inputs, samples: Sequence[Sample], spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    try:
        return rope_index_of(joined, spec)
    except (TypeError, ValueError):
        for index, sample in enumerate(samples):
            _number_alone(index, sample, spec)
        raise


def _one_by_one(rows: Sequence[Inputs], spec: MRopeSpec) -> list[tuple[Tensor, Tensor]]:
    """Number rows alone, as the upstream numbers each of them in a batch of all."""
    if any(row.image_grid_thw is not None or row.video_grid_thw is not None for row in rows):
        # Of a batch without any grid the omni models take another path.
        none = torch.empty((0, 3), dtype=torch.int64)
        rows = [
            row._replace(image_grid_thw=none)
            if row.image_grid_thw is None and row.video_grid_thw is None
            else row
            for row in rows
        ]
    return [_one(index, row, spec) for index, row in enumerate(rows)]


def _one(index: int, inputs: Inputs, spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    try:
        return rope_index_of(inputs, spec)
    except (TypeError, ValueError) as error:
        _raise_of_sample(index, error)


def _raise_of_sample(index: int, error: Exception) -> NoReturn:
    """Raise an error about a row of its own, by the number of the sample."""
    message = re.sub(r"^row 0\b", f"sample {index}", str(error).replace(" in the batch", ""))
    if not message.startswith("sample "):
        message = f"sample {index}: {message}"
    raise type(error)(message) from error


def _joined_media(samples: Sequence[Sample], spec: MRopeSpec) -> Inputs:
    """Return the grids and seconds of all samples, for the shared rule."""
    grids: dict[str, Any] = {
        name: torch.cat([sample.media[name] for sample in samples if name in sample.media])
        for name in fields.GRIDS.values()
        if any(name in sample.media for sample in samples)
    }
    seconds = [sample.seconds() for sample in samples]
    seconds = [value for value in seconds if value is not None]
    together = None
    if seconds and "second_per_grid_ts" in spec.arguments:
        together = join_seconds(seconds)
    return Inputs(torch.empty(0), **grids, second_per_grid_ts=together)


def _place_numbered(
    samples: Sequence[Sample], spec: MRopeSpec, width: int, side: PaddingSide, behind: int
) -> tuple[Tensor, Tensor]:
    """Return the positions that the samples bring, in padded rows."""
    if spec.mask_rule == "ignore":
        raise ValueError(
            f"position_ids must not be given to be padded: {spec.model_type} under convention "
            f"{spec.convention!r} numbers padding"
        )
    rows, deltas = [], []
    for sample in samples:
        assert sample.numbered is not None
        positions, delta = sample.numbered
        room = width - len(sample)
        by = (room - behind, behind) if side == "left" else (0, room)
        rows.append(pad(positions, by, value=spec.padding_value))
        deltas.append(delta - room if spec.delta_length == "padded" else delta)
    return torch.cat(rows, 1), torch.cat(deltas)
