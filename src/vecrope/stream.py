"""Padded or packed input as one flat stream of tokens, and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stream:
    """A batch as one flat stream: row after row, padding included.

    `exact` says which of the two forms of the pipeline runs: tables of exactly the size that the
    values ask for (eager, on a CPU), or tables of a capacity fixed by shapes alone.
    """

    input_ids: Tensor  # (N,)
    token_types: Tensor | None  # (N,)
    kept: Tensor | None  # (N,) bool, True = token; None: every one is
    cu_seqlens: Tensor | None  # (B + 1,) in the index dtype
    shape: tuple[int, ...]  # of input_ids as given
    exact: bool

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens with padding."""
        return self.input_ids.shape[0]

    @property
    def num_rows(self) -> int:
        """B, the number of rows or of packed sequences."""
        return self.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def index_dtype(self) -> torch.dtype:
        """The dtype of token indices, lengths and table columns."""
        return torch.int64 if self.exact else torch.int32

    @cached_property
    def row_bounds(self) -> Tensor:
        """(B + 1,) in the index dtype: where each row starts, then N."""
        if self.cu_seqlens is not None:
            return self.cu_seqlens
        batch, seq_len = self.shape
        device = self.input_ids.device
        return torch.arange(batch + 1, dtype=self.index_dtype, device=device) * seq_len

    def mark_row_starts(self, edges: Tensor) -> Tensor:
        """Set the first token of every row in `edges` (N,) bool, in place."""
        if len(self.shape) == 2:
            edges.view(self.shape)[:, 0] = True
        else:
            # An empty sequence at the end starts at N; the extra edge it leaves there is harmless.
            edges[self.row_bounds[:-1].clamp(max=self.num_tokens - 1)] = True
        return edges

    def row_of(self, index: Tensor) -> Tensor:
        """Return the row of each token index, in its shape; N and beyond give the last row."""
        starts = self.row_bounds[:-1]
        return torch.searchsorted(starts, index, right=True, out_int32=True) - 1


def make_stream(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    mm_token_type_ids: Tensor | None,
    *,
    exact: bool,
) -> Stream:
    """Flatten the input; shapes and dtypes have been checked."""
    device = input_ids.device
    bounds = None
    if cu_seqlens is not None:
        bounds = cu_seqlens.to(device=device, dtype=torch.int64 if exact else torch.int32)
    mask = None if attention_mask is None else attention_mask.to(device).reshape(-1).bool()
    types = None if mm_token_type_ids is None else mm_token_type_ids.to(device).reshape(-1)
    return Stream(input_ids.reshape(-1), types, mask, bounds, tuple(input_ids.shape), exact)
