from dataclasses import replace

import pytest
from bench_support import (
    FAMILIES,
    check,
    points,
    run_quick,
)

from bench.providers import (
    dense_provider,
    loop_provider,
    vecrope_concatenate_provider,
    vecrope_placeholders_provider,
    vecrope_plan_provider,
    vecrope_provider,
    vecrope_replace_provider,
    vecrope_unchecked_provider,
)
from bench.upstreams import (
    transformers_provider,
)

each_provider = pytest.mark.parametrize(
    "make", [vecrope_provider, vecrope_unchecked_provider, loop_provider, transformers_provider]
)


@points
@each_provider
def test_provider_gives_the_expected_answer(name, seq_len, make):
    assert check(make(), name, seq_len) == ""


@each_provider
def test_a_provider_is_measured(make):
    row = run_quick(make())
    assert (row.status, row.error) == ("ok", "")
    assert row.p20_us <= row.median_us <= row.p80_us
    assert row.repeats >= 2


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "make",
    [
        vecrope_provider,
        vecrope_unchecked_provider,
        vecrope_placeholders_provider,
        loop_provider,
        transformers_provider,
    ],
)
def test_provider_gives_the_expected_answer_for_a_family(name, make):
    error = check(make(), name, 1024)
    refused = make is vecrope_placeholders_provider and name == "qwen3_omni_moe"
    assert error.startswith("for glm4v, ") if refused else error == ""


@pytest.mark.parametrize(("name", "seq_len"), [("seed", 1), ("seed", 1024), ("video", 4096)])
def test_placeholders_give_the_expected_answer(name, seq_len):
    for provider in (vecrope_placeholders_provider(), vecrope_plan_provider()):
        assert check(provider, name, seq_len) == ""


each_provider_of_steps = pytest.mark.parametrize(
    "make",
    [
        vecrope_provider,
        vecrope_unchecked_provider,
        vecrope_concatenate_provider,
        vecrope_replace_provider,
        dense_provider,
    ],
)


@each_provider_of_steps
def test_provider_gives_the_expected_step(make):
    assert check(make(), "step", 4096) == ""


@each_provider_of_steps
def test_a_step_of_decoding_is_measured(make):
    row = run_quick(make(), "step-decode", 4096)
    assert (row.status, row.error) == ("ok", "")
    dense = 256 * 3 * 4096 * 4
    assert row.held_bytes == dense if make is dense_provider else row.held_bytes < dense / 32


def test_provider_of_prompts_does_not_apply_to_a_step():
    row = run_quick(loop_provider(), "step-decode", 4096)
    assert (row.status, row.error) == ("not applicable", "numbers prompts, not steps")


def test_provider_of_a_family_does_not_apply_to_another():
    provider = replace(loop_provider(), families=("glm4v",))
    row = run_quick(provider, "qwen3_vl", 1024)
    assert (row.status, row.error) == ("not applicable", "for glm4v only")


def test_provider_that_takes_one_row_does_not_apply_to_a_batch():
    row = run_quick(replace(vecrope_provider(), one_row_only=True), "batch", 4096)
    assert (row.status, row.error) == ("not applicable", "takes one row without padding")
    assert not row.failed
