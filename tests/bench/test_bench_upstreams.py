from functools import cache
from pathlib import Path

import pytest
from bench_support import (
    FAMILIES,
    SMALL,
    STEPS,
    run_quick,
)
from own_support import SGLANG_WHEEL, VLLM_WHEEL, needs_sglang, needs_vllm

from bench.upstreams import (
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
    row = run_quick(sglang(), name, seq_len)
    assert (row.status, row.error) == ("ok", "")


@needs_sglang
@pytest.mark.parametrize("name", STEPS)
def test_sglang_gives_the_expected_step(name):
    row = run_quick(sglang(), name, 4096)
    assert (row.status, row.error) == ("ok", "")
    workload = make_workload(name, 4096)
    assert row.held_bytes == 24 * int(workload.attention_mask.sum()) + 8 * 256


@needs_vllm
@pytest.mark.parametrize(("name", "seq_len"), [*SMALL, *[(name, 1024) for name in FAMILIES]])
def test_vllm_gives_the_expected_answer(name, seq_len):
    row = run_quick(vllm(), name, seq_len)
    assert (row.status, row.error) == ("ok", "")
