"""The prompts of families with a rule of their own, and their upstreams' functions."""

import os
from functools import cache
from pathlib import Path

import pytest
from bench_support import check

from bench.providers import vecrope_provider
from bench.upstreams import sglang_provider, transformers_provider, vllm_provider
from bench.workloads import make_workload

WHEELS = {
    "sglang": (sglang_provider, "VECROPE_SGLANG_WHEEL"),
    "vllm": (vllm_provider, "VECROPE_VLLM_WHEEL"),
}
# The upstreams that each family has.
UPSTREAMS = {
    "glm_image": {"transformers", "sglang"},
    "hunyuan_vl": {"transformers"},
    "isaac": {"vllm"},
    "bailing_moe_v3_vl": {"sglang"},
    "bailing_moe_v3_vl-pictures": {"vllm"},
    "minicpmv4_7": {"transformers", "sglang", "vllm"},
}


def name_of(layout, kind="mixed-own"):
    return f"{kind}-{layout}"


@pytest.mark.parametrize("layout", UPSTREAMS)
def test_a_prompt_has_pictures_of_many_sizes(layout):
    workload = make_workload(name_of(layout), 4000)
    sizes = workload.image_grid_thw if workload.target_sizes is None else workload.target_sizes
    assert len({tuple(size) for size in sizes.tolist()}) > 5
    assert workload.input_ids.shape == (1, 4000)


@pytest.mark.parametrize("layout", UPSTREAMS)
@pytest.mark.parametrize(("kind", "size"), [("mixed-own", 300), ("mixed-own-batch", 1000)])
def test_vecrope_and_transformers_give_the_expected_answer(layout, kind, size):
    name = name_of(layout, kind)
    assert check(vecrope_provider(), name, size) == ""
    has_transformers = "transformers" in UPSTREAMS[layout]
    assert (check(transformers_provider(), name, size) == "") == has_transformers


@cache
def provider_of(upstream):
    make, variable = WHEELS[upstream]
    return make(Path(os.environ[variable]))


@pytest.mark.wheels
@pytest.mark.parametrize("upstream", WHEELS)
@pytest.mark.parametrize("layout", UPSTREAMS)
def test_wheels_give_the_expected_answer(layout, upstream):
    if WHEELS[upstream][1] not in os.environ:
        pytest.skip(f"{WHEELS[upstream][1]} does not name a wheel of {upstream}")
    for size in (300, 4000):
        difference = check(provider_of(upstream), name_of(layout), size)
        assert (difference == "") == (upstream in UPSTREAMS[layout]), difference
