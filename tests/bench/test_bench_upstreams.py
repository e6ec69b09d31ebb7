from functools import cache
from pathlib import Path

import pytest
import torch
from bench_support import (
    FAMILIES,
    SMALL,
    STEPS,
    check,
    run_quick,
)
from own_support import SGLANG_WHEEL, VLLM_WHEEL, needs_sglang, needs_vllm

from bench.upstreams import (
    sglang_host_provider,
    sglang_provider,
    vllm_provider,
)
from bench.workloads import make_workload


@cache
def sglang():
    return sglang_provider(Path(SGLANG_WHEEL))


@cache
def vllm():
    return vllm_provider(Path(VLLM_WHEEL))


@needs_sglang
@pytest.mark.parametrize(("name", "seq_len"), [*SMALL, *[(name, 1024) for name in FAMILIES]])
def test_sglang_gives_the_expected_answer(name, seq_len):
    assert check(sglang(), name, seq_len) == ""


@needs_sglang
@pytest.mark.parametrize("name", STEPS)
def test_sglang_gives_the_expected_step(name):
    row = run_quick(sglang(), name, 4096)
    assert (row.status, row.error) == ("ok", "")
    workload = make_workload(name, 4096)
    assert row.held_bytes == 24 * int(workload.attention_mask.sum()) + 8 * 256


@needs_sglang
@pytest.mark.parametrize("name", ["mixed-glm4v", "mixed-qwen2_5_vl", "mixed-ernie4_5_vl_moe"])
def test_sglang_takes_mixed_prompts_whose_placeholders_it_reads(name):
    other = "reads other placeholders than the prompts of transformers have"
    assert check(sglang(), name, 400) == (other if "ernie" in name else "")


@needs_vllm
@pytest.mark.parametrize(("name", "seq_len"), [*SMALL, *[(name, 1024) for name in FAMILIES]])
def test_vllm_gives_the_expected_answer(name, seq_len):
    assert check(vllm(), name, seq_len) == ""


@needs_sglang
def test_sglang_on_the_host_gives_sglangs_answers():
    workload = make_workload("mixed-glm4v", 400)
    on_host = sglang_host_provider(Path(SGLANG_WHEEL))
    assert all(map(torch.equal, on_host.prepare(workload)(), sglang().prepare(workload)()))
    assert on_host.name == sglang().name.replace("sglang", "sglang-host")
    assert on_host.why_not(workload) == "needs a CUDA device; run it with --device cuda"
