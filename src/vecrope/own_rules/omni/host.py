"""An omni batch numbered on the host: a walk over its items, then bytes."""

from __future__ import annotations

from operator import sub
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.checks import RowError
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs, on_cpu
from vecrope.own_rules.common import Tokens, unmasked_tokens
from vecrope.own_rules.omni.entries import Pieces, pieces_of, positions_of
from vecrope.own_rules.omni.find import find_items
from vecrope.own_rules.omni.media import MOST_FLOAT, Dtypes, float32, read_media, timed
from vecrope.own_rules.omni.number import follow
from vecrope.spec import MRopeSpec


class Followed(NamedTuple):
    """A batch whose items have been followed on the host."""

    tokens: Tokens
    entries: Pieces  # of the unmasked tokens
    rope_deltas: Tensor  # (B, 1) on the CPU
    dtypes: Dtypes


def follow_on_host(inputs: Inputs, spec: MRopeSpec, rule: OmniRule) -> Followed:
    """Find the items of a batch, and follow the running position over them.

    Raises:
        ValueError: for media that are not sound, or do not fit the tokens.
    """
    if not inputs.input_ids.is_cpu:
        inputs = on_cpu(inputs)
    tokens, media = unmasked_tokens(inputs), read_media(inputs, spec, rule)
    items = find_items(tokens, media, inputs, spec, rule)
    media = timed(media, [item[3] for item in items], spec, rule)
    entries, largest = follow(items, media, tokens.bounds, spec, rule)
    for row, most in enumerate(largest):
        if spec.position_dtype == "float32" and most >= MOST_FLOAT:
            raise RowError.of(
                row,
                f": positions must stay below 2**24 in torch.float32, got {most:.0f}; does "
                "second_per_grid_ts hold seconds?",
            )
    dtypes = Dtypes.of(inputs, spec, rule)
    kept, lengths = (
        [*map(sub, bounds[1:], bounds)] for bounds in (tokens.bounds, tokens.given_bounds)
    )
    if dtypes.counts_padding:
        largest = [
            max(most, dtypes.padding) if length > number else most
            for most, length, number in zip(largest, lengths, kept, strict=True)
        ]
    near = float32 if dtypes.deltas == torch.float32 else int
    taken = lengths if spec.delta_length == "padded" else kept
    deltas = [[near(near(most + 1) - length)] for most, length in zip(largest, taken, strict=True)]
    rope_deltas = torch.tensor(deltas, dtype=dtypes.deltas, device="cpu").view(-1, 1)
    return Followed(tokens, pieces_of(entries, media, spec, rule), rope_deltas, dtypes)


def number_on_host(inputs: Inputs, spec: MRopeSpec, rule: OmniRule) -> tuple[Tensor, Tensor]:
    """Return the positions and deltas of a batch, from any device and on it; it is waited for.

    Raises:
        ValueError: as `follow_on_host` does.
    """
    input_ids = inputs.input_ids
    tokens, pieces, rope_deltas, dtypes = follow_on_host(inputs, spec, rule)
    positions = torch.empty((3, 0), dtype=dtypes.positions, device="cpu")
    if pieces.base:
        laid_out = torch.float32 if spec.position_dtype == "float32" else torch.int64
        positions = positions_of(pieces, laid_out).to(dtypes.positions)
    positions = tokens.in_batch(positions, dtypes.padding).view(3, *input_ids.shape)
    return positions.to(input_ids.device), rope_deltas.to(input_ids.device)
