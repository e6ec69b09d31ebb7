"""Kernels that read the bounds of packed sequences, in plain torch.

They stand in for flash attention, `causal_conv1d` and flash-linear-attention on a CPU: each splits
its input at the bounds and calls what transformers calls for one sequence. What lies beyond the
last bound comes out as NaN, as it comes out of a kernel uninitialised.
"""

from itertools import pairwise

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask


def varlen_attention(
    module,  # noqa: ARG001
    query,
    key,
    value,
    attention_mask,
    *,
    scaling=None,
    cu_seq_lens_q=None,
    cu_seq_lens_k=None,
    max_length_q=None,
    max_length_k=None,
    **_,
):
    assert attention_mask is None
    if cu_seq_lens_q is None:
        cu_seq_lens_q = cu_seq_lens_k = torch.tensor([0, query.shape[2]])
    else:
        assert cu_seq_lens_q.dtype == torch.int32
        assert max_length_q == max_length_k == int(cu_seq_lens_q.diff().max())
    assert torch.equal(cu_seq_lens_q, cu_seq_lens_k)
    parts = []
    bounds = cu_seq_lens_q.tolist()
    for start, stop in pairwise(bounds):
        part = (tensor[:, :, start:stop] for tensor in (query, key, value))
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                *part, is_causal=True, scale=scaling, enable_gqa=True
            )
        )
    rest = query.shape[2] - bounds[-1]
    parts.append(query.new_full((*query.shape[:2], rest, value.shape[-1]), torch.nan))
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register("varlen", varlen_attention)
AttentionMaskInterface.register("varlen", flash_attention_mask)


def patch_convolution(module, monkeypatch):
    """Give a modeling module's linear attention a convolution that reads bounds."""
    convolve = module.causal_conv1d_fn.__wrapped__

    def causal_conv1d_fn(hidden_states, *args, seq_idx=None, **kwargs):
        if seq_idx is None:
            return convolve(hidden_states, *args, **kwargs)
        assert seq_idx.dtype == torch.int32
        lengths = seq_idx[0].unique_consecutive(return_counts=True)[1].tolist()
        return torch.cat(
            [convolve(part, *args, **kwargs) for part in hidden_states.split(lengths, 2)], 2
        )

    monkeypatch.setattr(module, "causal_conv1d_fn", causal_conv1d_fn)


def patch_linear_attention(module, monkeypatch):
    """Give the functions of a modeling module's linear attention kernels that read bounds."""
    patch_convolution(module, monkeypatch)
    chunk = module.torch_chunk_gated_delta_rule.__wrapped__

    def chunk_gated_delta_rule(*states, g, beta, cu_seqlens=None, **kwargs):
        lengths = [states[0].shape[1]] if cu_seqlens is None else cu_seqlens.diff().tolist()
        parts = zip(*(state.split(lengths, 1) for state in (*states, g, beta)), strict=True)
        kwargs.pop("seq_idx", None)
        answers = [chunk(*part[:3], g=part[3], beta=part[4], **kwargs) for part in parts]
        return torch.cat([answer for answer, _ in answers], 1), None

    monkeypatch.setattr(module, "torch_chunk_gated_delta_rule", chunk_gated_delta_rule)
