"""The command line compares its answer with the reference, and times both."""

import sys

import pytest
import torch

import vecrope
from tests.cli.prompts import words
from vecrope.cli.demo import conversation
from vecrope.spec import MRopeSpec
from vecrope.testing import reference


def test_a_wrong_position_is_reported_loudly(run, monkeypatch):
    def planted(*arguments, **keywords):
        position_ids, rope_deltas = answer(*arguments, **keywords)
        position_ids[2, 0, 23] += 1
        return position_ids, rope_deltas

    answer = vecrope.get_rope_index
    monkeypatch.setattr(vecrope, "get_rope_index", planted)
    code, out, err = run()
    assert code == 1
    assert "Confirmed" not in out
    assert "NOT CONFIRMED: the positions differ from those of vecrope.testing.reference" in out
    assert err == (
        "python -m vecrope: WRONG POSITIONS: position_ids differ in row 0, first at token 23, "
        "axis W: expected 23, got 24\n"
    )


def test_a_wrong_delta_is_reported_loudly(run, monkeypatch):
    def planted(*arguments, **keywords):
        position_ids, rope_deltas = answer(*arguments, **keywords)
        return position_ids, rope_deltas + 1

    answer = vecrope.get_rope_index
    monkeypatch.setattr(vecrope, "get_rope_index", planted)
    code, _, err = run()
    assert code == 1
    assert err.endswith("WRONG POSITIONS: rope_deltas differ in row 0: expected -2376, got -2375\n")


def test_an_answer_to_what_the_reference_refuses_is_reported_loudly(run, monkeypatch):
    def refuse(*_, **__):
        raise reference.Refusal("for a test")

    monkeypatch.setattr(reference, "get_rope_index", refuse)
    code, out, err = run()
    assert code == 1
    assert "NOT CONFIRMED" in out
    assert err.endswith("WRONG POSITIONS: the reference refuses the prompt: for a test\n")


def test_both_are_timed_on_one_thread_which_is_undone(run, monkeypatch):
    def counted(*arguments, **keywords):
        threads.append(torch.get_num_threads())
        return answer(*arguments, **keywords)

    answer, threads = vecrope.get_rope_index, []
    monkeypatch.setattr(vecrope, "get_rope_index", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads[0] == 2
    assert len(threads) > 3
    assert set(threads[1:]) == {1}


@pytest.mark.parametrize(
    ("seconds", "shown", "ratio"),
    [
        pytest.param((50e-6, 2), " 50 µs, 2000.00 ms", "40000.0", id="slow loop"),
        pytest.param((0.01, 999e-6), " 10.00 ms, 999 µs", "0.10", id="fast loop"),
    ],
)
def test_times_are_readable(seconds, shown, ratio):
    from vecrope.cli.confirm import Answer, Timing
    from vecrope.cli.report import render

    prompt = conversation(MRopeSpec.for_model("glm4v", convention="sglang"))
    position_ids = torch.zeros((3, 1, 2559), dtype=torch.int64)
    library, loop = (Timing(value, 3) for value in seconds)
    answer = Answer(position_ids, torch.zeros((1, 1)), None, library, loop, "the loop, in Python")
    *_, first, second, last = render(prompt, [[]], answer)
    times = (line.partition("  median")[0].split()[-2:] for line in (first, second))
    assert " " + ", ".join(" ".join(time) for time in times) == shown
    assert words(last)[4] == ratio


def test_the_time_is_compared_with_transformers_where_it_is_installed(run):
    transformers = pytest.importorskip("transformers")
    *_, peer, ratio = run("--model", "qwen2_vl")[1].splitlines()
    assert peer.startswith(f"  transformers {transformers.__version__}, its own function ")
    assert ratio.startswith(f"  transformers {transformers.__version__} / vecrope ")


def test_the_types_of_a_prompt_are_those_that_transformers_is_given(run_prompt):
    image = MRopeSpec.for_model("qwen2_vl", convention="transformers").image_token_id
    prompt = {"input_ids": [7, image], "mm_token_type_ids": [0, 1], "image_grid_thw": [[1, 2, 2]]}
    code, out, _ = run_prompt(*("--model", "qwen2_vl", "--convention", "transformers"), **prompt)
    assert code == 0
    assert "  transformers " in out.splitlines()[-1]


@pytest.mark.parametrize(
    "absent",
    [
        pytest.param(lambda patch: patch.setitem(sys.modules, "transformers", None), id="absent"),
        pytest.param(
            lambda patch: patch.delitem(
                sys.modules["transformers.models.auto.modeling_auto"].MODEL_MAPPING_NAMES,
                "qwen2_vl",
            ),
            id="without the family",
        ),
        pytest.param(
            lambda patch: patch.setattr(
                "transformers.models.qwen2_vl.modeling_qwen2_vl.Qwen2VLModel.get_rope_index",
                lambda *_, **__: (torch.zeros(1), None),
            ),
            id="numbers otherwise",
        ),
    ],
)
def test_it_is_compared_with_the_loop_where_transformers_cannot_be(run, monkeypatch, absent):
    absent(monkeypatch)
    code, out, _ = run("--model", "qwen2_vl")
    assert code == 0
    assert out.splitlines()[-2].startswith("  the loop, plain Python over lists ")
