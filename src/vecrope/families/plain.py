"""What looks like M-RoPE in these upstreams, and counts tokens."""

from __future__ import annotations

from vecrope.families.conventions import BY_IDS, SGLANG, TRANSFORMERS, VLLM
from vecrope.families.family import Family


def _plain(*conventions: str) -> Family:
    rules = {
        "transformers": TRANSFORMERS,
        "sglang": SGLANG,
        "vllm": VLLM,
    }
    no_placeholder = {"image_token_id": None, "spatial_merge_size": 1, **BY_IDS}
    return Family({name: {**rules[name], **no_placeholder} for name in conventions}, {})


FAMILIES: dict[str, Family] = {
    "qwen3_asr": _plain("sglang", "vllm"),
    "minicpmv4_6": _plain("vllm"),
}
