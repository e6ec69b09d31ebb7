import itertools
import time
from dataclasses import replace

import pytest
import torch
from bench_support import (
    BROKEN,
    ENVIRONMENT,
    quick,
    run_quick,
)

from bench import runner
from bench.answers import loop_answer
from bench.providers import (
    vecrope_provider,
)
from bench.workloads import make_workload


def test_oracle_follows_the_convention():
    workload = make_workload("batch", 4096)
    padding = workload.attention_mask == 0
    for convention, value in (("sglang", 1), ("transformers", 0)):
        position_ids, _ = loop_answer(workload, convention)
        assert position_ids[:, padding].unique().tolist() == [value]


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (
            lambda p, d: (p + (p == 7), d),
            "position_ids[0, 0, 7]: expected 7, got 8; 3 of 900 differ",
        ),
        (lambda p, d: (p, d + 1), "rope_deltas[0, 0]: expected -112, got -111; 1 of 1 differ"),
        (lambda p, d: (p[:, 0], d), "position_ids must have shape (3, 1, 300), got (3, 300)"),
        (lambda p, d: (p.int(), d), "position_ids must be torch.int64, got torch.int32"),
    ],
    ids=["position", "delta", "shape", "dtype"],
)
def test_provider_that_lies_becomes_an_unequal_row(lie, error):
    honest = vecrope_provider()

    def prepare(workload):
        call = honest.prepare(workload)
        return lambda: lie(*call())

    row = run_quick(replace(honest, prepare=prepare))
    assert (row.status, row.error) == ("unequal", error)
    assert row.failed
    assert row.median_us is None


def test_exception_becomes_an_error_row():
    row = run_quick(BROKEN)
    assert (row.status, row.error) == ("error", "RuntimeError: no such kernel")
    assert row.failed


def test_providers_take_turns():
    calls = []

    def provider(name):
        honest = vecrope_provider()

        def prepare(workload):
            call = honest.prepare(workload)
            return lambda: calls.append(name) or call()

        return replace(honest, name=name, prepare=prepare)

    providers = [provider("first"), BROKEN, provider("second")]
    config = replace(quick(), seconds=0, min_repeats=runner._ROUNDS)  # a call in each round
    rows = runner.run_point(config, providers, ENVIRONMENT)
    assert [(row.provider, row.status) for row in rows] == [
        ("first", "ok"), ("broken", "error"), ("second", "ok"),
    ]  # fmt: skip
    turns = [name for name, _ in itertools.groupby(calls)]
    # To be checked, timed in rounds, and weighed.
    assert turns == ["first", "second"] * (1 + runner._ROUNDS + 1)


def test_one_that_is_slow_is_called_no_more_than_it_must_be():
    calls = []
    honest = vecrope_provider()

    def prepare(workload):
        call = honest.prepare(workload)
        return lambda: calls.append(time.sleep(0.002)) or call()

    row = run_quick(replace(honest, prepare=prepare))
    assert row.repeats == 2
    # Checked; warmed up and timed in two rounds; and weighed.
    assert len(calls) == 1 + 2 * 2 + 1


def test_memory_is_the_peak_and_not_the_sum():
    def call():
        for _ in range(3):
            torch.zeros(1000, dtype=torch.int64)
        return torch.zeros(500, dtype=torch.int64)

    assert runner.measure_memory(call, quick()) == 8000


def test_memory_counts_what_stands_together():
    def call():
        first = torch.ones(1000, dtype=torch.int64)
        return first, first.clone()

    assert runner.measure_memory(call, quick()) == 16000


def test_time_is_in_microseconds():
    wall_us, device_us = runner.measure_time(lambda: torch.ones(8), quick())
    assert len(wall_us) >= 2
    assert 0.1 < min(wall_us) < 100_000
    assert device_us == []
