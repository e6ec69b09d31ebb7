"""The positions of every sample, none of which sees another's media.

Where the placeholders of each sample are as many as its own media ask for, images, videos and audio
each for themselves, nothing of the joined batch can go to another sample, and the batch is numbered
in one call. Where that cannot be told by counting ids or types, each sample is numbered alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, islice
from typing import Any, NoReturn

import torch
from torch import Tensor

from vecrope.collate import fields
from vecrope.collate.join import join_rows
from vecrope.collate.samples import Sample
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.omni.media import audio_tokens
from vecrope.rope_index import rope_index_of
from vecrope.spec import MRopeSpec

_TYPES = {"image": 1, "video": 2}  # of `mm_token_type_ids`


def number_padded(
    samples: Sequence[Sample],
    spec: MRopeSpec,
    batch: Mapping[str, Tensor],
    media: Mapping[str, Any],
    before: Sequence[int],
    after: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return positions (3, B, T) and deltas (B, 1) of padded rows, as the upstream numbers them.

    Args:
        samples: as they were read.
        spec: the family's rules.
        batch: their tokens, (B, T) each.
        media: of all samples, joined.
        before: columns of padding at the left of each row.
        after: likewise at the right.
    """
    if samples[0].numbered is not None:
        return _place_numbered(samples, spec, before, after)
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
    width = batch["input_ids"].shape[1]
    starts = [row * width + left for row, left in enumerate(before)]
    return _together(joined, samples, spec, starts)


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
    bounds = [*accumulate(map(len, samples), initial=0)]
    joined = _joined(samples, spec, {**tokens, "cu_seqlens": torch.tensor(bounds)}, media)
    positions, deltas = _together(joined, samples, spec, bounds[:-1])
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
    given: dict[str, Any] = {
        name: tokens[name] for name in tokens if name != "mm_token_type_ids" or not omni
    }
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


def _check_counts(
    joined: Inputs, samples: Sequence[Sample], spec: MRopeSpec, starts: Sequence[int]
) -> None:
    """Check that the placeholders of each sample are as many as its own media describe."""
    # Padding does not count: it is not among a sample's own tokens.
    masked = spec.mask_rule == "skip" and any("attention_mask" in one.tokens for one in samples)
    mask = joined.attention_mask if masked else None
    types, token_ids = joined.mm_token_type_ids, _token_ids(spec)
    of_types = None if types is None else _bytes(types, mask)
    for kind, sizes in _sizes(joined, spec).items():
        items = iter(sizes)
        if of_types is not None:
            codes, code = of_types, _TYPES[kind]
        else:
            codes, code = _bytes(torch.as_tensor(joined.input_ids == token_ids[kind]), mask), 1
        for index, (sample, start) in enumerate(zip(samples, starts, strict=True)):
            found = codes.count(code, start, start + len(sample))
            expected = sum(islice(items, sample.counts[kind]))
            if found != expected:
                _number_alone(index, sample, spec)
                raise ValueError(
                    f"sample {index} must have {expected} {kind} tokens, as its own "
                    f"{fields.GRIDS.get(kind, 'audio')} says, got {found}"
                )


def _token_ids(spec: MRopeSpec) -> dict[str, int | None]:
    """Return the placeholder of each kind."""
    by_marker = spec.marker_rule in ("last", "count")
    found = {
        "image": spec.image_token_id,
        "video": spec.image_token_id if by_marker else spec.video_token_id,
    }
    if isinstance(spec.own_rule, OmniRule):
        found["audio"] = spec.own_rule.audio_token_id
    return found


def _sizes(joined: Inputs, spec: MRopeSpec) -> dict[str, list[int]]:
    """Return how many tokens each medium has, for each kind of which there are any."""
    sizes: dict[str, list[int]] = {}
    merged = spec.spatial_merge_size**2
    if joined.image_grid_thw is not None:
        patches = joined.image_grid_thw.prod(1, dtype=torch.int64).tolist()
        sizes["image"] = [number // merged for number in patches]
    if joined.video_grid_thw is not None:
        patches = joined.video_grid_thw.prod(1, dtype=torch.int64).tolist()
        merged *= spec.temporal_merge_size
        sizes["video"] = [number // merged for number in patches]
    if joined.audio_seqlens is not None and isinstance(spec.own_rule, OmniRule):
        lengths = joined.audio_seqlens.to(torch.int64)
        sizes["audio"] = audio_tokens(lengths, spec.own_rule.n_window).clamp(min=0).tolist()
    return sizes


def _bytes(values: Tensor, mask: Tensor | None) -> bytearray:
    """Return small values as bytes, which are counted fast; 0 at masked tokens."""
    held = bytearray(values.numel())
    codes = torch.frombuffer(held, dtype=torch.uint8).copy_(values.flatten())
    if mask is not None:
        codes *= mask.flatten().to(torch.uint8)
    return held


def _number_alone(index: int, sample: Sample, spec: MRopeSpec) -> None:
    """Number a sample as a row of its own, so that what is wrong with it is raised."""
    _one(index, _with_mask(sample, spec), spec)


def _with_mask(sample: Sample, spec: MRopeSpec) -> Inputs:
    mask = sample.tokens.get("attention_mask")
    return sample.inputs(spec)._replace(attention_mask=None if mask is None else mask[None])


def _together(
    joined: Inputs, samples: Sequence[Sample], spec: MRopeSpec, starts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Number samples at once, whose first tokens are at `starts`."""
    _check_counts(joined, samples, spec, starts)
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
    samples: Sequence[Sample], spec: MRopeSpec, before: Sequence[int], after: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the positions that the samples bring, in padded rows."""
    if spec.mask_rule == "ignore":
        raise ValueError(
            f"position_ids must not be given to be padded: {spec.model_type} under convention "
            f"{spec.convention!r} numbers padding"
        )
    numbered = [sample.numbered for sample in samples if sample.numbered is not None]
    positions = join_rows([one for one, _ in numbered], spec.padding_value, before, after)
    deltas = torch.cat([one for _, one in numbered])
    if spec.delta_length == "padded":
        deltas = deltas - torch.tensor([[sum(room)] for room in zip(before, after, strict=True)])
    return positions.view(len(positions), len(samples), -1), deltas
