"""Padded or packed input as one flat stream of tokens, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.search import search
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec


@dataclass(frozen=True)
class Stream:
    """A batch as one flat stream: row after row, padding included."""

    input_ids: Tensor  # (N,)
    token_types: Tensor | None  # (N,)
    kept: Tensor | None  # (N,) bool, True = token; None: every one is
    row_bounds: Tensor  # (B + 1,) in the index dtype: where each row starts, then N
    shape: tuple[int, ...]  # of input_ids as given
    open_markers: Tensor | None = None  # (B,) that are open before each row; None: none are

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens with padding."""
        return self.input_ids.shape[0]

    @property
    def num_rows(self) -> int:
        """B, the number of rows or of packed sequences."""
        return self.row_bounds.shape[0] - 1

    @property
    def kept_in_rows(self) -> Tensor:
        """(B,) in the index dtype: the unmasked tokens of each row."""
        return self.row_bounds.diff() if self.kept is None else self.row_sums(self.kept)

    @property
    def index_dtype(self) -> torch.dtype:
        """The dtype of token indices, lengths and table columns."""
        return self.row_bounds.dtype

    def token_rows(self) -> Tensor:
        """Return (N,) int64: the row of each token."""
        device = self.row_bounds.device
        if len(self.shape) == 2:
            return torch.arange(self.num_tokens, device=device) // self.shape[1]
        if self.num_rows == 1:  # Triton 3.6 compiles no search among nothing
            return torch.zeros(self.num_tokens, dtype=torch.int64, device=device)
        index = torch.arange(self.num_tokens, dtype=self.index_dtype, device=device)
        return search(self.row_bounds[1:-1], index)

    def running_sums(self, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return sums of `values` (..., N) in a token's row up to and with it, and (..., B) in all.

        `rows` (N,) is the row of each token.
        """
        if len(self.shape) == 2:
            by_row = values.view(*values.shape[:-1], *self.shape)
            sums = by_row.cumsum(-1, dtype=self.index_dtype)
            last = sums[..., -1] if self.shape[1] else sums.new_zeros(sums.shape[:-1])
            return sums.flatten(-2), last
        total = pad(values.cumsum(-1, dtype=self.index_dtype), (1, 0))
        at_bounds = total[..., self.row_bounds]
        return total[..., 1:] - at_bounds[..., rows], at_bounds.diff()

    def row_sums(self, values: Tensor) -> Tensor:
        """Return (B,) the sums of `values` (N,) in each row."""
        if len(self.shape) == 2:
            return values.view(self.shape).sum(1, dtype=self.index_dtype)
        return pad(values.cumsum(0, dtype=self.index_dtype), (1, 0))[self.row_bounds].diff()


def value_at_last(flags: Tensor, values: Tensor, default: int, *, before: bool = False) -> Tensor:
    """Return (N,) the value at the last flagged token up to and with each, or `default`.

    With `before` the value at the flagged token in front of each flagged one; of others nothing.
    """
    num_tokens = flags.shape[0]
    number = flags.cumsum(0)
    # By their numbers, from 1 on; the last slot takes what is not flagged.
    table = values.new_full((num_tokens + 2,), default)
    table.scatter_(0, number.masked_fill(~flags, num_tokens + 1), values)
    return table[number - 1 if before else number]


def make_stream(inputs: Inputs, spec: MRopeSpec) -> Stream:
    """Flatten the tokens of a batch, of checked shapes and dtypes."""
    input_ids, cu_seqlens = inputs.input_ids, inputs.cu_seqlens
    device, is_wide = input_ids.device, False
    if not torch.compiler.is_compiling():  # a graph is not to depend on sizes
        is_wide = input_ids.numel() >= 2**31
    index_dtype = torch.int64 if is_wide else torch.int32
    if cu_seqlens is None:
        batch, seq_len = input_ids.shape
        bounds = torch.arange(batch + 1, dtype=index_dtype, device=device) * seq_len
    else:
        # Bounds that are not checked must not lead out of the tokens.
        bounds = cu_seqlens.to(device, index_dtype).clamp(0, input_ids.shape[0])
    mask = inputs.attention_mask if spec.mask_rule == "skip" else None
    ids, mask, types = (
        values if values is None or values.dim() == 1 else values.reshape(-1)
        for values in (input_ids, mask, inputs.mm_token_type_ids)
    )
    assert ids is not None
    kept = None if mask is None else mask.to(device, torch.bool)
    types = None if types is None else types.to(device)
    return Stream(ids, types, kept, bounds, tuple(input_ids.shape), inputs.open_markers)
