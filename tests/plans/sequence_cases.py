"""Rows that hold several sequences each."""

import pytest
import torch
from oracles import spec_of

from vecrope import (
    plan_rope_index,
)
from vecrope.testing import Prompt

QWEN = spec_of("qwen2_vl", "transformers")


SPECS = {
    "glm4v-transformers": spec_of("glm4v", "transformers"),
    "glm4v-sglang": spec_of("glm4v", "sglang"),
    "qwen2_vl-transformers": QWEN,
    "qwen2_5_vl-transformers": spec_of("qwen2_5_vl", "transformers"),
    "qwen3_vl-vllm": spec_of("qwen3_vl", "vllm"),
}


each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


ids = torch.tensor


def planned_index(*args, **arguments):
    """Answer as `get_rope_index` does, from a plan, which may have a capacity."""
    plan = plan_rope_index(*args, **arguments)
    return plan.position_ids(), plan.rope_deltas


def ids_of(spec, rows):
    return Prompt.from_symbols(spec, rows).input_ids
