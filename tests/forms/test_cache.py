"""A compiled graph in another process: the cache hits."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the compiler's own

PROCESS = """
import json, sys
import torch
from torch._dynamo.utils import counters
from vecrope import MRopeSpec, get_rope_index

device = sys.argv[1]
spec = MRopeSpec.for_model("qwen2_5_vl", convention="transformers")
ids = torch.tensor([[7, spec.image_token_id, 8]] * 2, device=device)
grids = torch.tensor([[1, 2, 2]] * 2, device=device)
function = torch.compile(get_rope_index, fullgraph=True, dynamic=True)
positions, _ = function(ids, spec, image_grid_thw=grids)
found = {name: dict(counters[name]) for name in ("inductor", "aot_autograd")}
print(json.dumps([positions.tolist(), found]))
"""


@pytest.mark.parametrize(
    "device",
    [
        "cpu",  # the static form
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_another_process_finds_the_graph_in_the_cache(device, tmp_path):
    answers = []
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        process = subprocess.run(
            [sys.executable, "-c", PROCESS, device], env=environment, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        answers.append(json.loads(process.stdout.splitlines()[-1]))
    (first, before), (second, after) = answers
    assert first == second == [[[0, 1, 2]] * 2] * 3
    assert before["aot_autograd"].get("autograd_cache_saved") == 1
    assert not before["aot_autograd"].get("autograd_cache_hit")
    assert after["aot_autograd"].get("autograd_cache_hit") == 1
    assert not after["aot_autograd"].get("autograd_cache_saved")
