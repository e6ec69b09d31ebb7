"""Packed samples under the kernels that read their bounds, on a GPU: each is what it is alone.

Flash attention is torch's own, called with the bounds that `collate` returns; and `flash_attn` and
flash-linear-attention where they are installed.
"""

from copy import deepcopy
from inspect import signature
from unittest import mock

import pytest
import torch
from tiny_models import tiny_model
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from tests.collate import varlen
from tests.collate.model_samples import samples_of
from tests.collate.test_models import (
    ARGUMENTS,
    LAYOUT,
    LINEAR,
    SHARED,
    assert_as_alone,
    assert_leaks,
    language_module,
    linear_model,
    packed_batch,
    without,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:.* has layers of linear attention"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),
]
# The kernel computes in bfloat16, which has 8 bits of precision.
BFLOAT16 = {"rtol": 1.6e-2, "atol": 1e-3}
# Products of float32 in Triton, summed in another order than torch's.
FLOAT32 = {"rtol": 1e-3, "atol": 1e-4}


class OnCuda(torch.nn.Module):
    """A model on a CUDA device that takes and returns tensors of the CPU."""

    def __init__(self, model):
        super().__init__()
        self.model = deepcopy(model).cuda()
        self.config = model.config

    def forward(self, **batch):
        moved = {
            name: value.cuda() if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        answer = self.model(**moved)
        answer.logits = answer.logits.float().cpu()
        return answer


class InPlainTorch(OnCuda):
    """The same, whose linear attention is that of transformers without any kernel."""

    def forward(self, **batch):
        module = language_module(self.model)
        names = ("causal_conv1d_fn", "torch_chunk_gated_delta_rule")
        plain = {name: getattr(module, name) for name in names}
        plain = {name: getattr(each, "__wrapped__", each) for name, each in plain.items()}
        with mock.patch.multiple(module, **plain):
            return super().forward(**batch)


def torch_flash_attention(
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
    from torch.nn.attention.varlen import varlen_attn

    assert attention_mask is None
    if cu_seq_lens_q is None:
        length = query.shape[2]
        cu_seq_lens_q = cu_seq_lens_k = torch.tensor([0, length], device="cuda").int()
        max_length_q = max_length_k = length
    groups = query.shape[1] // key.shape[1]
    if scaling is not None:  # which the first releases do not take
        query = query * (scaling * query.shape[-1] ** 0.5)
    heads = (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))
    flat = [each[0].transpose(0, 1).to(torch.bfloat16).contiguous() for each in heads]
    causal = {"window_size": (-1, 0)}
    if "window_size" not in signature(varlen_attn).parameters:
        causal = {"is_causal": True}
    bounds = cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k
    return varlen_attn(*flat, *bounds, **causal)[None].to(query.dtype), None


AttentionInterface.register("torch_flash", torch_flash_attention)
AttentionMaskInterface.register("torch_flash", flash_attention_mask)


# Attention among chosen tokens needs a mask.
@pytest.mark.parametrize("model_type", [name for name in SHARED if name != "qwen4_exp"])
def test_torchs_flash_attention_keeps_samples_apart(model_type):
    pytest.importorskip("torch.nn.attention.varlen", reason="torch has no varlen_attn")
    layout = LAYOUT.get(model_type, "both")
    model, samples = OnCuda(tiny_model(model_type)), samples_of(model_type, layout)
    batch = packed_batch(model, samples)
    model.model.set_attn_implementation({"text_config": "torch_flash"})
    assert_as_alone(model, samples, batch, BFLOAT16)
    leaking = without(batch, *ARGUMENTS)
    assert_leaks(model, samples, leaking, BFLOAT16)


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "glm4v", "qwen3_vl"])
def test_flash_attn_keeps_samples_apart(model_type):
    pytest.importorskip("flash_attn", reason="flash_attn is not installed")
    layout = LAYOUT.get(model_type, "both")
    model, samples = OnCuda(tiny_model(model_type).bfloat16()), samples_of(model_type, layout)
    batch = packed_batch(model, samples)
    model.model.set_attn_implementation({"text_config": "flash_attention_2"})
    assert_as_alone(model, samples, batch, BFLOAT16)


def _cheapest(autotuner, _):
    """Return the configuration that compiles soonest: small tiles, spread over threads."""

    def size(config):
        tiles = [size for size in config.kwargs.values() if isinstance(size, int)]
        return config.num_stages, *tiles, abs(config.num_warps - 4)

    return [min(autotuner.configs, key=size)]


def in_one_sequence(batch):
    """Return a packed batch whose bounds are those of one sequence."""
    bounds = batch["cu_seq_lens_q"][[0, -1]]
    return {**batch, "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}


@pytest.mark.parametrize(("model_type", "layout"), LINEAR.items())
def test_linear_attention_keeps_samples_apart(model_type, layout, monkeypatch):
    """By flash-linear-attention; the convolution before it by `causal_conv1d` where that is.

    The sample alone is computed without either. Nothing is tuned, and all calls have bounds, so
    that each kernel is compiled once for all four models.
    """
    pytest.importorskip("fla", reason="flash-linear-attention is not installed")
    import triton.language as tl
    from fla.ops.common import chunk_o
    from fla.ops.gated_delta_rule import chunk_fwd
    from triton.runtime.autotuner import Autotuner

    # Without these, products of float32 are of TF32, which has 10 bits of precision.
    monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")
    monkeypatch.setattr(chunk_fwd, "SOLVE_TRIL_DOT_PRECISION", tl.constexpr("ieee"), raising=False)
    monkeypatch.setattr(Autotuner, "prune_configs", _cheapest)
    # On Hopper Triton before 3.7.1 gets the gradients of tiles of 64 columns wrong, so that fla
    # refuses all. Heads of 32 have tiles of 32, and what they get is compared with plain torch.
    monkeypatch.setattr(chunk_o, "TRITON_ABOVE_3_7_1", True, raising=False)
    sizes = {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
    model = linear_model(model_type, **sizes)
    try:
        import causal_conv1d  # noqa: F401
    except ImportError:
        varlen.patch_convolution(language_module(model), monkeypatch)
    samples, alone = samples_of(model_type, layout), InPlainTorch(model)
    model = OnCuda(model)
    batch = packed_batch(model, samples)
    assert_as_alone(model, samples, batch, FLOAT32, alone)
    for leaking in (in_one_sequence(batch), without(batch, "seq_idx")):
        assert_leaks(model, samples, leaking, FLOAT32, alone)
