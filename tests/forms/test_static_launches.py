"""The static form launches at most a third of what a table of segments took before it."""

import pytest
import torch
from oracles import spec_of

from tests.own_rules.test_launches import Launches
from vecrope import get_rope_index

# Operators without views that the commit 1495229 took for the same call.
BEFORE = {
    ("glm4v", "sglang"): 232,
    ("glm4v", "transformers"): 238,
    ("qwen2_vl", "transformers"): 205,
    ("qwen2_5_vl", "transformers"): 227,
    ("qwen2_5_vl", "vllm"): 221,
    ("qwen3_vl", "transformers"): 207,
    ("ernie4_5_vl_moe", "transformers"): 207,
}


@pytest.mark.parametrize("name", BEFORE, ids="-".join)
def test_a_call_launches_at_most_a_third(name):
    ids = torch.full((2, 40), 7)
    grids = torch.tensor([[1, 2, 2]])
    arguments = {"attention_mask": torch.ones_like(ids), "image_grid_thw": grids}
    options = {"form": "static", "validate": False}
    with Launches() as launches:
        get_rope_index(ids, spec_of(*name), video_grid_thw=grids, **arguments, **options)
    assert launches.number <= BEFORE[name] // 3
