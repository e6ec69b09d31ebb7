"""A compiled graph in another process: the cache hits."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the compiler's own

PROCESS = """
import json, sys
import torch
from torch._dynamo.utils import counters
from vecrope import MRopeSpec, get_rope_index
from vecrope.forms import select

if not torch.cuda.is_available():
    select._why_no_kernels_for = lambda _: None  # Triton interprets them
device = "cuda" if torch.cuda.is_available() else "cpu"
spec = MRopeSpec.for_model("qwen2_5_vl", convention="transformers")
ids = torch.tensor([[7, spec.image_token_id, 8]] * 2, device=device)
grids = torch.tensor([[1, 2, 2]] * 2, device=device)
function = torch.compile(get_rope_index, fullgraph=True, dynamic=True)
positions, _ = function(ids, spec, image_grid_thw=grids)
found = {name: dict(counters[name]) for name in ("inductor", "aot_autograd")}
print(json.dumps([positions.tolist(), found]))
"""


def test_another_process_finds_the_graph_in_the_cache(tmp_path):
    pytest.importorskip("triton", reason="needs Triton")
    answers = []
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        process = subprocess.run(
            [sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        answers.append(json.loads(process.stdout.splitlines()[-1]))
    (first, before), (second, after) = answers
    assert first == second == [[[0, 1, 2]] * 2] * 3
    assert before["aot_autograd"].get("autograd_cache_miss") == 1
    assert after["aot_autograd"].get("autograd_cache_hit") == 1
    assert not after["aot_autograd"].get("autograd_cache_miss")
