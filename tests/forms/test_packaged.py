"""Compiled ahead of time and across processes: a package that is loaded, and a cache that hits."""

import json
import os
import subprocess
import sys

import pytest
import torch
from support import assert_no_answer, assert_same

from tests.forms.prompts import SGLANG, WARM_UP
from tests.forms.test_compiled import batch_of
from tests.forms.test_exported import RopeIndex, dynamic_shapes, export_arguments

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the compiler's own
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]
)
def test_a_program_is_compiled_ahead_of_time_and_loaded(device, tmp_path):
    def moved(prompt):
        return tuple(value.to(device) for value in export_arguments(prompt).values())

    program = torch.export.export(
        RopeIndex(SGLANG), moved(WARM_UP), dynamic_shapes=dynamic_shapes()
    )
    path = torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(tmp_path / "rope_index.pt2"),
        # The wrapper is compiled by the host's compiler, which takes most of the time.
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
    )
    loaded = torch._inductor.aoti_load_package(path)
    for prompt in (WARM_UP, batch_of(3, 40, 5, 4), batch_of(6, 12, 2, 3)):
        assert_same([value.cpu() for value in loaded(*moved(prompt))], prompt.expected())
    ids, mask, images, videos = moved(WARM_UP)
    assert_no_answer([value.cpu() for value in loaded(ids.flip(0), mask, images, videos)])


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
