from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from own_support import SPECS as OWN
from support import (
    CONVENTIONS,
    assert_same,
    at_most,
    fitting,
    no_synchronisation,
    random_traffic,
    spec_of,
)

from vecrope import RopeIndexRunner, get_rope_index
from vecrope.runner import _power_from, _powers
from vecrope.testing import Prompt

SPEC = spec_of("glm4v", "sglang")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
        ],
    ),
]
each_device = pytest.mark.parametrize("device", DEVICES)
on_cuda = pytest.mark.parametrize("device", DEVICES[1:])
LIMITS = {"max_rows": 4, "max_tokens": 1000, "max_images": 200, "max_videos": 200}


def make(device, spec=SPEC, **changes):
    return RopeIndexRunner(spec, device=device, **{**LIMITS, **changes})


def arguments_of(prompt, device):
    arguments = prompt.arguments()
    del arguments["mm_token_type_ids"]
    return {name: None if value is None else value.to(device) for name, value in arguments.items()}


def call(runner, prompt):
    arguments = arguments_of(prompt, runner.device)
    return runner(arguments.pop("input_ids"), **arguments)


@each_device
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_runner_answers_as_the_loop(convention, device):
    spec = spec_of("glm4v", convention)
    runner = make(device, spec)

    @at_most(40)
    @given(fitting(spec))
    def check(prompt):
        answer = call(runner, prompt)
        assert {tensor.device.type for tensor in answer} == {device}
        assert_same(answer, prompt.expected())
        runner.check()

    check()


@each_device
def test_int32(device):
    prompt = Prompt.from_symbols(SPEC, ["t<II>t"], image_grid_thw=[[1, 2, 4]])
    runner = make(device, dtype=torch.int32)
    position_ids, rope_deltas = runner(
        prompt.input_ids.int().to(device), image_grid_thw=prompt.image_grid_thw.to(device)
    )
    expected, deltas = prompt.expected()
    assert_same((position_ids, rope_deltas), (expected.int(), deltas))
    with pytest.raises(TypeError, match=r"input_ids must be torch\.int32, as the runner is"):
        runner(prompt.input_ids.to(device))


@each_device
@pytest.mark.parametrize(
    ("shape", "grids", "message"),
    [
        ((5, 8), {}, "the runner was built for at most 4 rows, got 5"),
        ((1, 1001), {}, "the runner was built for at most 1000 tokens, got 1001"),
        ((1, 8), {"image_grid_thw": 201}, "at most 200 images, got 201"),
        ((1, 8), {"video_grid_thw": 300}, "at most 200 videos, got 300"),
    ],
)
def test_what_is_beyond_the_limits_is_refused(shape, grids, message, device):
    grids = {
        name: torch.zeros((number, 3), dtype=torch.int64, device=device)
        for name, number in grids.items()
    }
    with pytest.raises(ValueError, match=message):
        make(device)(torch.ones(shape, dtype=torch.int64, device=device), **grids)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_rows": 0}, ValueError, "max_rows must be at least 1, got 0"),
        ({"max_tokens": 0}, ValueError, "max_tokens must be at least 1, got 0"),
        ({"max_images": -1}, ValueError, "max_images must be at least 0, got -1"),
        ({"max_videos": 1.5}, TypeError, r"max_videos must be an int, got 1\.5"),
        ({"max_rows": 2**15, "max_tokens": 2**15}, ValueError, r"must be less than 2\*\*30"),
    ],
)
def test_limits_that_cannot_be(changes, error, message):
    with pytest.raises(error, match=message):
        make("cpu", **changes)


def test_a_dtype_that_cannot_be():
    with pytest.raises(TypeError, match=r"dtype must be torch\.int64 or torch\.int32"):
        make("cpu", dtype=torch.float32)


def test_positions_that_are_always_int64_in_another_dtype():
    with pytest.raises(ValueError, match=r"dtype must be torch\.int64 under convention 'vllm'"):
        make("cpu", spec_of("glm4v", "vllm"), dtype=torch.int32)


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("glm_image", "images_per_sample"),
        ("qwen3_omni_moe", "audio_seqlens, .*, use_audio_in_video"),
    ],
)
def test_families_that_are_numbered_by_more(model_type, names):
    with pytest.raises(ValueError, match=f"a runner takes no {names}, which '{model_type}'"):
        make("cpu", spec_of(model_type, "transformers"))


def test_families_that_the_kernels_do_not_know():
    with pytest.raises(ValueError, match=r"knows the families that share a rule, got .isaac."):
        make("cuda", OWN["isaac"])


def test_the_runner_is_on_the_device_of_its_memory(monkeypatch):
    ids = torch.empty(0, device="meta")
    monkeypatch.setattr(
        "vecrope.forms.triton.graphs.Memory", lambda *_: SimpleNamespace(input_ids=ids)
    )
    assert make("cuda").device == torch.device("meta")


def test_another_device_is_refused():
    runner = make("cpu")
    with pytest.raises(ValueError, match="input_ids must be on cpu, as the runner is, got meta"):
        runner(torch.ones((1, 4), dtype=torch.int64, device="meta"))


@each_device
def test_a_misfit_is_named(device):
    runner = make(device)
    ids = Prompt.from_symbols(SPEC, ["tIt"]).input_ids.to(device)

    def call_and_check():
        runner(ids)
        runner.check()

    with pytest.raises(ValueError, match="row 0 holds image tokens beyond the last grid"):
        call_and_check()

    def call_with_a_mask_and_check():
        runner(ids, attention_mask=torch.full_like(ids, 2))
        runner.check()

    with pytest.raises(ValueError, match=r"row 0, .*: attention_mask must hold 0 or 1, got 2"):
        call_with_a_mask_and_check()


@each_device
def test_a_batch_without_tokens(device):
    position_ids, rope_deltas = make(device)(torch.ones((2, 0), dtype=torch.int64, device=device))
    assert position_ids.shape == (3, 2, 0)
    assert rope_deltas.tolist() == [[0], [0]]


def test_on_a_cpu_there_is_nothing_to_warm_up():
    runner = make("cpu")
    assert runner.warm_up() == 0
    assert runner.num_graphs == 0
    with pytest.raises(RuntimeError, match="a runner has buffers on a CUDA device only"):
        runner.inputs(1, 1)
    with pytest.raises(RuntimeError, match="a runner has buffers on a CUDA device only"):
        runner.replay(1, 1)


def test_without_triton_a_cuda_device_is_refused(monkeypatch):
    monkeypatch.setattr("vecrope.runner.HAS_TRITON", False)
    with pytest.raises(RuntimeError, match="a runner on a CUDA device needs Triton"):
        make("cuda")


def test_buckets():
    assert [_power_from(number) for number in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]
    assert _powers(1, 1) == [1]
    assert _powers(1, 6) == [1, 2, 4, 6]
    assert _powers(64, 48) == [48]
    assert _powers(64, 256) == [64, 128, 256]


@pytest.mark.slow
@each_device
def test_a_day_of_traffic(device):
    runner = make(device)
    seconds = runner.warm_up()
    graphs = runner.num_graphs
    # 1, 2 and 4 rows, 64, 128, 256, 512 and 1000 tokens, with and without a mask.
    assert graphs == (0 if device == "cpu" else 3 * 5 * 2)
    assert seconds >= 0
    for prompt in random_traffic(SPEC, 2000):
        arguments = arguments_of(prompt, device)
        with no_synchronisation() if device == "cuda" else nullcontext():
            answer = runner(arguments.pop("input_ids"), **arguments)
        expected = get_rope_index(spec=SPEC, **arguments_of(prompt, "cpu"))
        assert_same(answer, expected)
    assert runner.num_graphs == graphs


@on_cuda
def test_answers_are_views_that_the_next_call_writes(device):
    runner = make(device)
    prompts = [Prompt.from_symbols(SPEC, [row]) for row in ("ttt", "tt")]
    first, _ = call(runner, prompts[0])
    kept = first.clone()
    second, _ = call(runner, prompts[1])
    assert first.data_ptr() == second.data_ptr()
    assert_same((kept,), (prompts[0].expected()[0],))


@on_cuda
def test_a_prompt_in_the_runners_buffers_is_replayed(device):
    runner = make(device)
    prompt = Prompt.from_symbols(
        SPEC, ["t<II>t", "ttt<II"], mask=["1" * 6, "0" * 6], image_grid_thw=[[1, 2, 4]]
    )
    inputs = runner.inputs(2, 6)
    inputs.input_ids.copy_(prompt.input_ids)
    inputs.attention_mask.copy_(prompt.attention_mask)
    inputs.image_grid_thw[0] = prompt.image_grid_thw[0].to(device)
    for _ in range(2):
        assert_same(runner.replay(2, 6, masked=True), prompt.expected())
        runner.check()
    inputs.image_grid_thw[1] = prompt.image_grid_thw[0].to(device)
    runner.replay(2, 6, masked=True)
    with pytest.raises(ValueError, match=r"image_grid_thw row 1 .* is left over"):
        runner.check()
    # A call reads nothing of the buffers, and leaves them as they are.
    text = Prompt.from_symbols(SPEC, ["ttt"])
    assert_same(call(runner, text), text.expected())
    runner.check()
    inputs.image_grid_thw[1] = 0
    assert_same(runner.replay(2, 6, masked=True), prompt.expected())
    runner.check()
    with pytest.raises(ValueError, match="at most 4 rows, got 5"):
        runner.replay(5, 6)
