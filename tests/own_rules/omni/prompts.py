"""Prompts of the omni families."""


# Hand-worked cases. Where an upstream is named, its own function gives the same.

QWEN2_5, QWEN3 = "qwen2_5_omni", "qwen3_omni_moe"
