"""The positions of every sample, none of which sees another's media.

The batch is numbered at once where each sample's placeholders are found to stand for its own media
alone. Where they are not, each sample is numbered by itself, which names the one that is at fault.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import chain, islice, repeat
from operator import add, sub
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.checks import RowError
from vecrope.collate import fields
from vecrope.collate.join import Padding
from vecrope.collate.samples import Sample, Samples, inputs_of
from vecrope.families.rules import GlmImage, Hunyuan, MiniCPMV47, OmniRule
from vecrope.forms.eager.rope_index import find_groups, number_batch
from vecrope.forms.eager.runs import row_starts
from vecrope.inputs import Inputs
from vecrope.own_rules.dispatch import lay_out, number_layout
from vecrope.own_rules.omni.media import KINDS, omni_dtypes, read_media
from vecrope.prepare import prepare
from vecrope.rope_index import rope_index_of
from vecrope.sequences import with_text_positions
from vecrope.spec import MRopeSpec


def number(
    samples: Samples,
    spec: MRopeSpec,
    tokens: Mapping[str, Tensor],
    media: Mapping[str, Any],
    *,
    padding: Padding | None = None,
    text_row: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return positions (3, B, T) of padded samples, or (3, 1, N) of packed ones, and deltas (B, 1).

    Args:
        samples: as they were read.
        spec: the family's rules.
        tokens: of all samples, (B, T) each; or (N,) each, and `cu_seqlens`, (B + 1,).
        media: of all samples, joined.
        padding: of padded rows.
        text_row: put the row of text positions in front.
    """
    sound = [*chain.from_iterable(samples.sound)]
    inputs = inputs_of(tokens, media, samples.counts["image"], sound, spec)
    if samples.numbered:
        positions, deltas = _numbered_before(samples, spec, inputs, padding)
    elif (answer := _together(samples, spec, inputs, text_row=text_row)) is not None:
        positions, deltas = answer
    else:
        positions, deltas = _one_by_one(samples, spec, tokens if padding else None)
    if text_row:
        positions = with_text_positions(positions, inputs, spec)
    return positions.view(len(positions), -1, inputs.input_ids.shape[-1]), deltas


def _one_by_one(
    samples: Samples, spec: MRopeSpec, padded: Mapping[str, Tensor] | None
) -> tuple[Tensor, Tensor]:
    numbered = []
    for index, who in enumerate(samples.names):
        row = padded and {name: batch[index : index + 1] for name, batch in padded.items()}
        numbered.append(number_alone(samples[index], spec, who, row))
    positions, deltas = zip(*numbered, strict=True)
    return torch.cat(positions, 1 if padded else 2), torch.cat(deltas)


def number_alone(
    sample: Sample, spec: MRopeSpec, who: str, row: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return positions (3, 1, T) and deltas (1, 1) of a sample.

    Args:
        sample: as it was read.
        spec: the family's rules.
        who: names the sample.
        row: its tokens with padding, (1, T) each. None: they are numbered as they are.

    Raises:
        TypeError: for a wrong type.
        ValueError: where it does not fit its own media.
    """
    try:
        return rope_index_of(sample.inputs(spec, row), spec)
    except (TypeError, ValueError) as error:
        if row is not None:
            number_alone(sample, spec, who)  # so that tokens are counted without padding
        problem = error.problem if isinstance(error, RowError) else f": {error}"
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(who + problem) from error


def _together(
    samples: Samples, spec: MRopeSpec, inputs: Inputs, *, text_row: bool
) -> tuple[Tensor, Tensor] | None:
    """Number samples at once; None where one of them is at fault, or might see another's media.

    With `text_row` there is the row of text positions in front where that costs least: of packed
    samples of the shared rule.
    """
    rule = spec.own_rule
    try:
        if rule is None:
            ready = prepare(inputs, spec, validate=True).inputs
            batch = find_groups(ready, spec)
            parts, counts = batch.parts, samples.counts
            if _have_own_items(parts.starts, parts.item, batch.bounds, counts):
                packed = inputs.cu_seqlens is not None
                return number_batch(batch, ready, spec, text_row=text_row and packed)
        elif isinstance(rule, GlmImage) or (
            # Only the grids of its own row are a GLM-Image prompt's.
            isinstance(rule, OmniRule) and _have_own_tokens(inputs, samples.counts, spec, rule)
        ):
            return rope_index_of(inputs, spec)
        elif not isinstance(rule, Hunyuan):  # which counts the images of the batch
            ready = prepare(inputs, spec, validate=True).inputs
            layout = lay_out(ready, spec)
            counts = _count_crops(samples) if isinstance(rule, MiniCPMV47) else samples.counts
            starts, _, items = [*zip(*layout.media, strict=True)] or ((), (), ())
            if _have_own_items(starts, items, layout.tokens.bounds, counts):
                return number_layout(layout, ready, spec)
    except (TypeError, ValueError):
        pass  # It is found once more where the samples are numbered one by one, and named.
    return None


def _have_own_items(
    starts: Sequence[int],
    items: Sequence[int],
    bounds: Sequence[int],
    counts: Mapping[str, Sequence[int]],
) -> bool:
    """Say whether each sample's tokens stand for its own images and videos alone.

    Args:
        starts: where tokens of an item begin, in the order of the batch.
        items: the item of each, all images before all videos.
        bounds: (B + 1,) where each sample begins, then N.
        counts: images and videos of each sample.
    """
    samples = range(len(counts["image"]))
    numbers = chain(counts["image"], counts["video"])
    sample_of = [*chain.from_iterable(map(repeat, (*samples, *samples), numbers))]
    firsts = [bisect_left(starts, bound) for bound in bounds]
    own = chain.from_iterable(map(repeat, samples, map(sub, firsts[1:], firsts)))
    return [*map(sample_of.__getitem__, items)] == [*own]


def _count_crops(samples: Samples) -> dict[str, list[int]]:
    """Return how many crops of pictures and of clips each sample has."""
    counts = {}
    for kind, name in fields.CROPS.items():
        column = samples.media.get(name, {})
        counts[kind] = [len(column[at]) if at in column else 0 for at in range(len(samples))]
    return counts


def _have_own_tokens(
    inputs: Inputs, counts: Mapping[str, Sequence[int]], spec: MRopeSpec, rule: OmniRule
) -> bool:
    """Say whether each sample has as many tokens as its images, its videos and its audio need."""
    media = read_media(inputs, spec, rule)
    bounds = torch.tensor(row_starts(inputs), device="cpu")
    token_ids = spec.image_token_id, spec.video_token_id, rule.audio_token_id
    for kind, token_id, first in zip(KINDS, token_ids, media.firsts, strict=False):
        assert token_id is not None
        placeholders = inputs.input_ids.eq(token_id)
        if inputs.attention_mask is not None:
            placeholders &= inputs.attention_mask.bool()
        found = pad(placeholders.view(-1).cumsum(0), (1, 0))[bounds].diff().tolist()
        left = iter(media.size[first:])
        if found != [sum(islice(left, number)) for number in counts[kind]]:
            return False
    return True


def _numbered_before(
    samples: Samples, spec: MRopeSpec, inputs: Inputs, padding: Padding | None
) -> tuple[Tensor, Tensor]:
    """Return the positions that the samples bring, one behind the other, and their deltas.

    What is between them is what a call gives to masked tokens of all `inputs`.
    """
    positions = [one for one, _ in samples.numbered.values()]
    deltas = torch.cat([one for _, one in samples.numbered.values()])
    if padding is None:
        return torch.cat(positions, 2), deltas
    if spec.mask_rule == "ignore":
        raise ValueError(
            f"position_ids must not be given to be padded: {spec.model_type} under convention "
            f"{spec.convention!r} numbers padding"
        )
    if spec.delta_length == "padded":
        room = [*map(add, padding.before, padding.behind)]
        deltas = deltas - torch.tensor(room, device="cpu")[:, None]
    value, rule, mask = spec.padding_value, spec.own_rule, inputs.attention_mask
    if isinstance(rule, OmniRule):
        *_, of_text = omni_dtypes(inputs, spec, rule)
        if of_text is not None:
            assert mask is not None  # of padded rows there is always one
            value = of_text
            least = value + 1 - mask.sum(1, keepdim=True)
            least = torch.where(mask.all(1, keepdim=True), deltas, least.to(deltas.dtype))
            deltas = deltas.maximum(least)
    return padding.join(positions, value), deltas
