"""What a request's positions cost in SGLang: the functions of the wheel are measured."""

from pathlib import Path

from own_support import SGLANG_WHEEL, needs_sglang

from bench import requests, sglang_requests


@needs_sglang
def test_the_wheels_functions_are_measured():
    engine = sglang_requests.ENGINE
    wheel = requests.Wheel(Path(SGLANG_WHEEL), "sglang")
    costs = [*requests.measure(engine, wheel, engine.families, (300,), 1)]
    assert {cost.model_type for cost in costs} == set(engine.families)
    assert all(cost.without > 0 for cost in costs)
