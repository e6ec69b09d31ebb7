"""Stands in for SGLang's kernels, of which there is no CPU build: names resolve, calls raise."""

import importlib.abc
import importlib.machinery
import sys
import types

import torch

__version__ = "0.4.10"


class _Missing:
    """A function, class or operator of the kernels."""

    def __init__(self, name):
        self.__dict__["__name__"] = name

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self.__name__}.{name}")

    def __call__(self, *_, **__):
        raise NotImplementedError(f"sgl_kernel.{self.__name__} is a stub")


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Missing(name)


class _Module(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        return __getattr__(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, _path, _target=None):
        if name.startswith("sgl_kernel."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(_Finder())
# SGLang looks these operators up while it is imported.
_OPERATORS = """
apply_gguf_moe_weights apply_multidimensional_rope_cpu apply_rotary_pos_emb_cpu
biased_grouped_topk_cpu bmm_cpu causal_conv1d_weight_pack conv3d_embed_cpu
conv3d_embed_weight_pack convert_scale_packed decode_attention_cpu deepseek_v4_topk_transform_512
dsv4_fused_q_indexer_rope_hadamard_quant extend_attention_cpu flash_attn_varlen_func
fp8_per_tensor_scaled_mm_cpu fp8_scaled_mm_cpu fused_add_rmsnorm_cpu
fused_dual_residual_rmsnorm_cpu fused_experts_cpu fused_gdn_gating_cpu fused_input_proj_cpu
fused_linear_sigmoid_mul fused_moe_router_cpu fused_qk_gemma_rmsnorm_cpu
fused_qk_gemma_rmsnorm_with_gate_cpu fused_qk_rmsnorm_apply_from_stats_cpu fused_qk_rmsnorm_cpu
fused_qk_rmsnorm_sumsq_cpu fused_qkvzba_split_reshape_cat_contiguous_cpu
fused_qkvzba_split_reshape_cat_cpu fused_rmsnorm_gated_cpu fused_scale_residual_norm_scale_shift
fused_scale_shift_cpu fused_sigmoid_gating_delta_rule_update_cpu fused_sigmoid_mul_cpu
gelu_and_mul_cpu gelu_tanh_and_mul_cpu gemma3_rmsnorm_cpu gemma4_rmsnorm_cpu
gemma_fused_add_rmsnorm_cpu gemma_rmsnorm_cpu grouped_topk_cpu image_preprocess_cpu
init_cpu_threads_env int4_scaled_mm_cpu int8_scaled_mm_with_quant l2norm_cpu layernorm_cpu
multimodal_rotary_embedding_cpu murmur_hash32_cpu qkv_proj_with_rope_fused_weight query_device
rmsnorm_cpu rotary_embedding rotary_embedding_cpu shared_expert_cpu shm_allgather shm_allreduce
silu_and_mul_cpu store_cache_cpu topk_sigmoid_cpu topk_softmax_cpu topk_transform
topk_transform_paged topk_transform_ragged weight_packed_linear
"""
_library = torch.library.Library("sgl_kernel", "FRAGMENT")
for _name in _OPERATORS.split():
    _library.define(f"{_name}() -> ()")
