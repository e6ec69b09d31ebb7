"""The positions of every sample, none of which sees another's media.

Where the placeholders of each sample are as many as its own media ask for, images, videos and audio
each for themselves, nothing of the joined batch can go to another sample, and the batch is numbered
in one call. Where that cannot be told by counting ids or types, each sample is numbered alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, islice, pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.collate import fields
from vecrope.collate.join import PaddingSide
from vecrope.collate.samples import Sample
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.omni.media import audio_tokens
from vecrope.rope_index import rope_index_of
from vecrope.spec import MRopeSpec

_TYPES = {"image": 1, "video": 2}


def number_padded(
    samples: Sequence[Sample],
    spec: MRopeSpec,
    batch: Mapping[str, Tensor],
    media: Mapping[str, Any],
    side: PaddingSide,
    behind: int,
) -> tuple[Tensor, Tensor]:
    """Return positions (3, B, T) and deltas (B, 1) of padded rows, as the upstream numbers them.

    Args:
        samples: as they were read.
        spec: the family's rules.
        batch: their tokens, (B, T) each.
        media: of all samples, joined.
        side: of the padding.
        behind: columns of padding on the right of rows that are padded on the left.
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
        answers = [_one(index, row, spec) for index, row in enumerate(rows)]
        return torch.cat([one for one, _ in answers], 1), torch.cat([one for _, one in answers])
    joined = _joined(samples, spec, {name: batch[name] for name in names if name in batch}, media)
    return _together(joined, samples, spec)


def number_packed(
    samples: Sequence[Sample],
    spec: MRopeSpec,
    tokens: Mapping[str, Tensor],
    media: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Return positions (3, 1, N) and deltas (B, 1) of samples one behind the other.

    Args:
        samples: as they were read.
        spec: the family's rules.
        tokens: their ids, and types if given, (N,) each.
        media: of all samples, joined.
    """
    numbered = [sample.numbered for sample in samples if sample.numbered is not None]
    if not numbered and not _told_by_counts(samples, spec):
        numbered = [_one(index, sample.inputs(spec), spec) for index, sample in enumerate(samples)]
    if numbered:
        return torch.cat([one for one, _ in numbered], 2), torch.cat([one for _, one in numbered])
    bounds = torch.tensor([*accumulate(map(len, samples), initial=0)])
    joined = _joined(samples, spec, {**tokens, "cu_seqlens": bounds}, media)
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
    """Say whether counting ids or types tells images, videos and audio apart."""
    if spec.own_rule is not None:
        return isinstance(spec.own_rule, OmniRule)
    if spec.marker_rule not in ("last", "count") or "mm_token_type_ids" in samples[0].tokens:
        return True
    return not all(any(sample.counts[kind] for sample in samples) for kind in fields.GRIDS)


def _joined(
    samples: Sequence[Sample],
    spec: MRopeSpec,
    tokens: Mapping[str, Tensor],
    media: Mapping[str, Any],
) -> Inputs:
    """Return the arguments that number all samples at once."""
    omni = isinstance(spec.own_rule, OmniRule)
    seconds = next((media[name] for name in fields.SECONDS if name in media), None)
    given = {name: tokens[name] for name in tokens if name != "mm_token_type_ids" or not omni}
    joined = Inputs(
        **given,
        image_grid_thw=media.get("image_grid_thw"),
        video_grid_thw=media.get("video_grid_thw"),
        second_per_grid_ts=seconds if "second_per_grid_ts" in spec.arguments else None,
    )
    if not omni:
        return joined
    lengths = [sample.audio_lengths() for sample in samples]
    given_lengths = [own for own in lengths if own is not None]
    sound = [flag for sample in samples for flag in sample.sound]
    return joined._replace(
        audio_seqlens=torch.cat(given_lengths) if given_lengths else None,
        use_audio_in_video=sound if any(sound) else False,
    )


def _check_counts(joined: Inputs, samples: Sequence[Sample], spec: MRopeSpec) -> None:
    """Check that the placeholders of each sample are as many as its own media describe."""
    types = joined.mm_token_type_ids
    values = (joined.input_ids if types is None else types).flatten()
    if joined.cu_seqlens is None:
        bounds = [*range(0, len(values) + 1, joined.input_ids.shape[1])]
    else:
        bounds = joined.cu_seqlens.tolist()
    kept = None
    if joined.attention_mask is not None and spec.mask_rule == "skip":
        kept = joined.attention_mask.flatten().bool()
    for kind, (token_id, sizes) in _media_tokens(joined, spec).items():
        code = token_id if types is None else _TYPES[kind]
        found = [0] * len(samples) if code is None else _count(values, code, kept, bounds)
        items = iter(sizes)
        for index, sample in enumerate(samples):
            expected = sum(islice(items, sample.counts[kind]))
            if found[index] != expected:
                _number_alone(index, sample, spec)
                raise ValueError(
                    f"sample {index} must have {expected} {kind} tokens, as its own "
                    f"{fields.GRIDS.get(kind, 'audio')} says, got {found[index]}"
                )


def _media_tokens(joined: Inputs, spec: MRopeSpec) -> dict[str, tuple[int | None, list[int]]]:
    """Return for each kind that the batch has its token, and the tokens of each medium."""
    by_marker = spec.marker_rule in ("last", "count")
    token_ids = {
        "image": spec.image_token_id,
        "video": spec.image_token_id if by_marker else spec.video_token_id,
    }
    merged = dict.fromkeys(token_ids, spec.spatial_merge_size ** 2)
    merged["video"] *= spec.temporal_merge_size
    found: dict[str, tuple[int | None, list[int]]] = {}
    for kind, name in fields.GRIDS.items():
        grids = getattr(joined, name)
        if grids is not None:
            patches = grids.prod(1, dtype=torch.int64).tolist()
            found[kind] = token_ids[kind], [number // merged[kind] for number in patches]
    if joined.audio_seqlens is not None:
        assert isinstance(spec.own_rule, OmniRule)
        lengths = joined.audio_seqlens.to(torch.int64)
        sizes = audio_tokens(lengths, spec.own_rule.n_window).clamp(min=0)
        found["audio"] = spec.own_rule.audio_token_id, sizes.tolist()
    return found


def _count(values: Tensor, code: int, kept: Tensor | None, bounds: Sequence[int]) -> list[int]:
    """Return how many of (N,) values between two bounds each are a code, at tokens that are kept.

    Bytes are counted, which takes a fraction of the time of sums.
    """
    flags = bytearray(len(values))
    found = torch.frombuffer(flags, dtype=torch.bool)
    torch.eq(values, code, out=found)
    if kept is not None:
        found &= kept
    return [flags.count(1, start, stop) for start, stop in pairwise(bounds)]


def _number_alone(index: int, sample: Sample, spec: MRopeSpec) -> None:
    """Number a sample as a row of its own, so that what is wrong with it is raised."""
    _one(index, _with_mask(sample, spec), spec)


def _with_mask(sample: Sample, spec: MRopeSpec) -> Inputs:
    mask = sample.tokens.get("attention_mask")
    return sample.inputs(spec)._replace(attention_mask=None if mask is None else mask[None])


def _together(joined: Inputs, samples: Sequence[Sample], spec: MRopeSpec) -> tuple[Tensor, Tensor]:
    _check_counts(joined, samples, spec)
    try:
        return rope_index_of(joined, spec)
    except (TypeError, ValueError):
        for index, sample in enumerate(samples):
            _number_alone(index, sample, spec)
        raise


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
