"""The runner, which takes a CPU for a CUDA device here."""

from dataclasses import replace

import pytest
import torch
from support import (
    assert_same,
    rope_index,
    spec_of,
)

from tests.forms.triton.interpreted import SPECS, interpreted
from vecrope import RopeIndexRunner
from vecrope.forms.triton.graphs import Memory
from vecrope.testing import Prompt

TOUCHING = Prompt.from_symbols(spec_of("glm4v", "vllm"), ["[II]"], video_grid_thw=[[2, 2, 2]])


def test_frames_that_touch_where_they_must_not_are_refused(monkeypatch):
    runner = make(TOUCHING.spec, monkeypatch)
    runner_answer(runner, TOUCHING)
    message = "video 0: its grid .* needs something between its frames"
    with pytest.raises(ValueError, match=message):
        runner.check()
    interpreted(monkeypatch)
    with pytest.raises(ValueError, match=message):
        rope_index(TOUCHING, form="kernels")


class Replayed:
    """Stands for a CUDA graph."""

    def __init__(self, launch, _device):
        self.replay = launch


def make(spec, monkeypatch):
    """Make a runner that takes the CPU for a CUDA device."""
    monkeypatch.setattr("vecrope.forms.triton.graphs.capture", Replayed)
    monkeypatch.setattr("vecrope.runner._wait", lambda _: None)
    limits = {"rows": 3, "tokens": 100, "images": 4, "videos": 2}
    arguments = {f"max_{what}": limit for what, limit in limits.items()}
    runner = RopeIndexRunner(spec, device="cpu", **arguments)
    runner._memory = Memory(spec, limits, torch.int64, torch.float32, torch.device("cpu"))
    return runner


@pytest.fixture
def runner(monkeypatch):
    return make(SPECS["sglang"], monkeypatch)


def runner_answer(runner, prompt):
    arguments = prompt.arguments()
    del arguments["mm_token_type_ids"]
    return runner(arguments.pop("input_ids"), **arguments)


def test_the_runner_reads_nothing_that_an_earlier_call_left(runner):
    assert runner.warm_up([(3, 70)]) > 0
    assert runner.num_graphs == 2
    assert runner.warm_up() > 0
    # 1, 2 and 3 rows, 64 and 100 tokens, with and without a mask.
    assert runner.num_graphs == 3 * 2 * 2
    images = {"image_grid_thw": [[1, 2, 4]] * 3}
    prompts = [
        Prompt.from_symbols(SPECS["sglang"], ["<II>t<II>t<II>"] * 1, **images),
        Prompt.from_symbols(SPECS["sglang"], ["ttt", "t<I"], mask=["011", "110"]),
        Prompt.from_symbols(SPECS["sglang"], ["t" * 70]),
        Prompt.from_symbols(
            SPECS["sglang"], ["[I]", "<I>"], image_grid_thw=[[1, 2, 2]], video_grid_thw=[[1, 2, 2]]
        ),
        Prompt.from_symbols(SPECS["sglang"], ["t"]),
    ]
    for prompt in prompts + prompts[::-1]:
        assert_same(runner_answer(runner, prompt), prompt.expected())
        runner.check()
    assert runner.num_graphs == 3 * 2 * 2


def test_the_runner_names_a_misfit_when_it_is_asked_to(runner):
    runner.check()
    for mask in (None, ["111"]):
        runner_answer(runner, Prompt.from_symbols(SPECS["sglang"], ["tIt"], mask=mask))
        with pytest.raises(ValueError, match="row 0 holds image tokens beyond the last grid"):
            runner.check()


def test_the_runners_buffers_are_read_where_they_are(runner):
    prompt = Prompt.from_symbols(SPECS["sglang"], ["t<II>", "tttt<"], image_grid_thw=[[1, 2, 4]])
    inputs = runner.inputs(2, 5)
    inputs.input_ids.copy_(prompt.input_ids)
    inputs.image_grid_thw[0] = prompt.image_grid_thw[0]
    for _ in range(2):
        assert_same(runner.replay(2, 5), prompt.expected())
    text = Prompt.from_symbols(SPECS["sglang"], ["ttt"])
    assert_same(runner_answer(runner, text), text.expected())
    runner.check()
    assert runner_answer(runner, replace(text, input_ids=text.input_ids[:, :0]))[0].numel() == 0
    with pytest.raises(ValueError, match="at most 100 tokens, got 101"):
        runner.replay(1, 101)


def test_packed_prompts_in_seconds_are_read_where_they_are(monkeypatch):
    spec = spec_of("qwen2_5_vl", "transformers")
    runner = make(spec, monkeypatch)
    prompt = Prompt.from_symbols(
        spec,
        ["tt<II>", "<VV>tt"],
        image_grid_thw=[[1, 2, 4]],
        video_grid_thw=[[2, 2, 2]],
        second_per_grid_ts=torch.tensor([1.5]),
    )
    inputs = runner.inputs(2, 12, packed=True)
    # What an earlier prompt left behind.
    inputs.cu_seqlens.fill_(5)
    expected, deltas = prompt.expected()
    for number in (2, 1):
        num_tokens = 6 * number
        inputs = runner.inputs(number, num_tokens, packed=True)
        inputs.input_ids.copy_(prompt.input_ids.view(-1)[:num_tokens])
        inputs.cu_seqlens.copy_(torch.arange(number + 1) * 6)
        inputs.image_grid_thw[0] = prompt.image_grid_thw[0]
        inputs.video_grid_thw[0] = prompt.video_grid_thw[0] * (number > 1)
        inputs.second_per_grid_ts[0] = 1.5
        answer = runner.replay(number, num_tokens, packed=True)
        assert_same(answer, (expected[:, :number].flatten(1), deltas[:number]))
        runner.check()
    arguments = prompt.arguments()
    del arguments["mm_token_type_ids"]
    bounds = torch.tensor([0, 6, 12])
    answer = runner(arguments.pop("input_ids").view(-1), cu_seqlens=bounds, **arguments)
    assert_same(answer, (expected.flatten(1), deltas))
    with pytest.raises(ValueError, match="at most 300 tokens of packed sequences, got 301"):
        runner.replay(1, 301, packed=True)
