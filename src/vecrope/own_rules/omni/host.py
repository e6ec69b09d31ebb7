"""Host numbers as tensors, and tensors as host numbers, in few passes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from operator import add, sub

import torch
from torch import Tensor

# From so many groups of eight flags on it pays to look at eight at a time first.
_WORDS_FROM = 4096


def host_tensor(values: Iterable[int]) -> Tensor:
    """Return (n,) int64 of at least one number: faster than `torch.tensor` for many."""
    return torch.frombuffer(array("q", values), dtype=torch.int64)


def text_around(offsets: Sequence[int], lengths: Sequence[int], num_tokens: int) -> Tensor:
    """Return (num_tokens,) bool: the tokens outside of ascending runs, of which none overlap."""
    ends = map(add, offsets, lengths)
    gaps = map(sub, [*offsets, num_tokens], [0, *ends])
    runs = [b"\1" * gap + b"\0" * tokens for gap, tokens in zip(gaps, [*lengths, 0], strict=True)]
    return torch.frombuffer(bytearray(b"".join(runs)), dtype=torch.bool)


def set_indices(flags: Tensor) -> Tensor:
    """Return the ascending indices at which `flags` (N,), of bools, is set."""
    num_words = flags.shape[0] // 8
    if num_words < _WORDS_FROM:
        return flags.nonzero().view(-1)
    whole = flags[: num_words * 8]
    words = whole.view(torch.int64).nonzero().view(-1)
    word, place = whole.view(-1, 8).index_select(0, words).nonzero().unbind(1)
    tail = flags[num_words * 8 :].nonzero().view(-1)
    return torch.cat((words.index_select(0, word) * 8 + place, tail + num_words * 8))
