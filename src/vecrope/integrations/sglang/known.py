"""SGLang's functions that vecrope's answers were compared with: 0.5.3 to 0.5.23."""

from __future__ import annotations

# What each calls, where it is defined in the same place.
HELPERS: dict[str, tuple[str, ...]] = {
    "get_rope_index": (),
    "get_rope_index_ernie45": (),
    "get_rope_index_glm4v": (),
    "get_rope_index_qwen3_omni": (
        "_get_feat_extract_output_lengths",
        "_get_llm_pos_ids_for_vision",
    ),
}
_FROM_0_5_3 = frozenset({"qwen2_vl", "qwen2_5_vl"})
_FROM_0_5_4 = _FROM_0_5_3 | {"qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe"}
_FROM_0_5_8 = _FROM_0_5_4 | {"paddleocr_vl"}
_FROM_0_5_9 = _FROM_0_5_8 | {"qwen3_5", "qwen3_5_moe"}
_FROM_0_5_12 = _FROM_0_5_9 | {"intern_s2_preview"}
_FROM_0_5_18 = _FROM_0_5_12 | {"interns2_mobius"}
_FROM_0_5_20 = _FROM_0_5_18 | {"qwen4_exp", "cosmos3_omni", "cosmos3_edge"}
# The model types that each `get_rope_index` numbers, by its fingerprint.
MODEL_TYPES: dict[str, frozenset[str]] = {
    "7663e4da7e672fdf": _FROM_0_5_3,
    "951d0f234c2bb7ef": _FROM_0_5_4,
    "c5710de35c297d58": _FROM_0_5_8,
    "bc312f72326b118a": _FROM_0_5_9,
    "6efdd5f85a5477e3": _FROM_0_5_9,
    "5e3c1b1fb8cef9d4": _FROM_0_5_12,
    "a0c24ff4b735bded": _FROM_0_5_18,
    "2be93a8c6cccc8f5": _FROM_0_5_20,
    "0b7f63eb216698ff": _FROM_0_5_20,
}
# Likewise of each function; None: it does not ask for a model type.
FINGERPRINTS: dict[str, dict[str, frozenset[str] | None]] = {
    "get_rope_index": {**MODEL_TYPES},
    "get_rope_index_ernie45": dict.fromkeys(("e097a0bd53b2f577", "2c55c43835a83fa5")),
    "get_rope_index_glm4v": dict.fromkeys(
        ("f02ebe7bd20ee5c3", "927efcf5c935bcdf", "b60d2c07f626b1cb")
    ),
    "get_rope_index_qwen3_omni": dict.fromkeys(("29e3d03b75057957", "6833f5d662a9a33c")),
}
