""""""

import json
from pathlib import Path

import pytest
from oracles import (
    families_of,
    spec_of,
)
from support import CONVENTIONS

# Recorded answers


GOLDEN = json.loads((Path(__file__).parents[1] / "glm4v_golden.json").read_text())

# The recorded types are transformers'. Where SGLang reads other types off these markers, types
# cannot give its answer.
TYPES_OF_TRANSFORMERS_ONLY = {"stray end first", "two starts, one end"}

BY_IDS_OR_TYPES = [
    pytest.param(case, upstream, by_types, id=f"{case['name']}-{upstream}-{way}")
    for case in GOLDEN["cases"]
    for upstream in CONVENTIONS
    for way, by_types in (("ids", False), ("types", True))
    if not (by_types and upstream == "sglang" and case["name"] in TYPES_OF_TRANSFORMERS_ONLY)
]

# SGLang, from a wheel


each_family_of_sglang = pytest.mark.parametrize(
    "model_type", [name for name in families_of("sglang") if name != "qwen3_asr"]
)

# vLLM, from a wheel


each_family_of_vllm = pytest.mark.parametrize(
    "model_type", [name for name in families_of("vllm") if spec_of(name, "vllm").image_token_id]
)
