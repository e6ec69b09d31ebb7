"""Where the sequences of a packed row begin and end, as models read it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vecrope.core.search import spread


def bounds_of(lengths: Sequence[int]) -> Tensor:
    """Return (num_sequences + 1,) int32: where sequences of these lengths start, then N."""
    return torch.frombuffer(array("i", accumulate(lengths, initial=0)), dtype=torch.int32)


def flash_attention_arguments(lengths: Sequence[int]) -> dict[str, Any]:
    """Return the bounds of sequences of these lengths, by transformers' names.

    `cu_seq_lens_q` and `cu_seq_lens_k`, (num_sequences + 1,) int32, and `max_length_q` and
    `max_length_k`, ints.
    """
    bounds = bounds_of(lengths)
    longest = max(lengths)
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def sequence_index(lengths: Sequence[int]) -> Tensor:
    """Return `seq_idx`, (1, N) int32: the number of each token's sequence, from 0."""
    return spread(torch.tensor(lengths, device="cpu"), sum(lengths)).to(torch.int32)[None]


def text_row_of(lengths: Sequence[int]) -> Tensor:
    """Return (1, 1, N) int64: how many tokens of its sequence stand before each."""
    text = torch.arange(max(lengths), device="cpu")
    return torch.cat([text[:length] for length in lengths])[None, None]
