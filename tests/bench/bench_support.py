"""What the tests of the benchmark share: small workloads, and points that are measured quickly."""

import pytest

from bench import runner
from bench.config import Config, Environment
from bench.provider import Provider
from bench.workloads import make_workload
from vecrope import MRopeSpec

SPEC = MRopeSpec.for_model("glm4v", convention="sglang")
ENVIRONMENT = Environment("a CPU", 1, "0.1.0", "abc", "2.13.0", "3.11.0", "2026-01-01")
SMALL = [("seed", 1), ("seed", 2), ("seed", 512), ("seed", 1024), ("short", 300), ("video", 4096)]
LARGE = [("batch", 4096)]
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "ernie4_5_vl_moe", "qwen3_omni_moe"]
STEPS = ("step", "step-decode")

points = pytest.mark.parametrize(("name", "seq_len"), SMALL + LARGE)


def quick(name="short", seq_len=300, busy=0):
    return Config(name, seq_len, seconds=0.001, min_repeats=2, busy=busy)


def run_quick(provider, name="short", seq_len=300):
    (result,) = runner.run_point(quick(name, seq_len), [provider], ENVIRONMENT)
    return result


def check(provider, name, seq_len):
    """Return why a provider does not apply, or where its answer is wrong, without measuring it."""
    workload = make_workload(name, seq_len)
    reason = provider.why_not(workload)
    if reason:
        return reason
    answer = provider.answer_of(workload, provider.call_for(workload)())
    expected = provider.oracle(workload, provider.convention_for(workload))
    return runner.difference(answer, expected)


def break_down(_workload):
    raise RuntimeError("no such\nkernel")


BROKEN = Provider("broken", "1.0", "sglang", break_down)
