"""The kernels of every family that shares the rule, packed input and all, in the interpreter."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from oracles import spec_of
from support import FITTING, assert_same, misfitting, refusal, rope_index

from tests.forms.triton.interpreted import interpreted
from vecrope.forms.triton import launch as fused
from vecrope.inputs import Inputs
from vecrope.testing import Prompt, Refusal, conversations, token_soup

# The interpreter takes a tenth of a second for each block.
few_examples = settings(max_examples=max(settings.default.max_examples // 5, 2), deadline=None)
# One for each way to tell placeholders, to lay out a video and to move on; tests/cuda has them all.
each_rule = pytest.mark.parametrize(
    "spec",
    [
        spec_of(*name)
        for name in (
            ("qwen2_vl", "transformers"),
            ("qwen2_5_vl", "sglang"),
            ("qwen3_vl", "transformers"),
            ("qwen3_vl", "sglang"),
            ("ernie4_5_vl_moe", "transformers"),
            ("ernie4_5_vl_moe", "sglang"),
        )
    ],
    ids=lambda spec: f"{spec.model_type}-{spec.convention}",
)
QWEN = spec_of("qwen2_5_vl", "transformers")


def small(spec):
    return conversations(spec, max_rows=2, max_segments=2, max_side=3) | token_soup(
        spec, max_rows=2, touching=True, zero_grids=True
    )


def packed(prompt):
    """Return the arguments that make a prompt's rows packed sequences, empty ones between."""
    batch, seq_len = prompt.input_ids.shape
    bounds = torch.arange(batch + 1).repeat_interleave(2)[1:] * seq_len
    arguments = {**prompt.arguments(), "cu_seqlens": bounds}
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if arguments[name] is not None:
            arguments[name] = arguments[name].flatten()
    return arguments


def launched(spec, arguments, **changes):
    return fused.launch(Inputs(**{**arguments, **changes}), spec, validate=True)


@each_rule
def test_the_loop_is_equalled_packed_as_in_rows(spec):
    @few_examples
    @given(small(spec))
    def check(prompt):
        expected = prompt.expected()
        buffers = launched(spec, prompt.arguments(), mm_token_type_ids=None)
        assert not buffers.faults.any()
        assert_same(buffers[:2], expected)
        buffers = launched(spec, packed(prompt))
        assert not buffers.faults.any()
        assert_same((buffers[0].view_as(expected[0]), buffers[1][::2]), expected)
        assert not buffers[1][1::2].any()

    check()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's
@each_rule
def test_what_the_loop_refuses_is_noticed(spec, monkeypatch):
    interpreted(monkeypatch)

    @few_examples
    @given(misfitting(spec, max_rows=2))
    def check(prompt):
        try:
            expected = prompt.expected()
        except Refusal:
            message = refusal(prompt, form="eager")
            assert message is not None
            assert refusal(prompt, form="kernels") == message
        else:
            buffers = launched(spec, prompt.arguments(), mm_token_type_ids=None)
            assert not buffers.faults.any()
            assert_same(buffers[:2], expected)

    check()


HALVES = [torch.tensor([0.1, 1 / 3]).to(dtype) for dtype in (torch.float16, torch.bfloat16)]
FLOATS = [torch.tensor([0.1, 1 / 3], dtype=dtype) for dtype in (torch.float32, torch.float64)]


@pytest.mark.parametrize(
    ("convention", "seconds"),
    [
        *(("transformers", given_) for given_ in (None, [0.1, 1 / 3], *HALVES, *FLOATS)),
        ("transformers", torch.tensor([3, 2])),
        *(("sglang", given_) for given_ in ([0.1, 1 / 3], *HALVES, FLOATS[0])),
        *(("vllm", given_) for given_ in ([0.1, 1 / 3], FLOATS[0])),
    ],
    ids=lambda value: str(getattr(value, "dtype", value)),
)
def test_seconds_are_rounded_as_they_are_elsewhere(convention, seconds, monkeypatch):
    interpreted(monkeypatch)
    # Of a rate that no binary number is exact for, and images of several frames.
    spec = replace(
        spec_of("qwen2_5_vl", convention), tokens_per_second=0.7, multi_frame_images=True
    )
    prompt = Prompt.from_symbols(
        spec,
        ["t<" + "I" * 3 + ">t<" + "V" * 23 + ">t<" + "V" * 9 + ">"],
        image_grid_thw=[[3, 2, 2]],
        video_grid_thw=[[23, 2, 2], [9, 2, 2]],
    )
    changes = {"second_per_grid_ts": seconds}
    expected = rope_index(prompt, **changes)
    assert_same(rope_index(prompt, form="kernels", **changes), expected)


@pytest.mark.parametrize("seconds", [[1.7], torch.tensor([2.9])], ids=["list", "tensor"])
def test_seconds_that_are_cut_to_whole_numbers(seconds, monkeypatch):
    """As transformers 4.52 to 5.17 does."""
    interpreted(monkeypatch)
    spec = replace(QWEN, time_dtype="int64")
    prompt = Prompt.from_symbols(spec, ["t<VVVV>t"], video_grid_thw=[[4, 2, 2]])
    expected = rope_index(prompt, second_per_grid_ts=seconds)
    assert_same(rope_index(prompt, form="kernels", second_per_grid_ts=seconds), expected)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's
@pytest.mark.parametrize("seconds", [[-1.0], [float("nan")], [float("inf")], [2.0**40]])
def test_seconds_that_are_none(seconds, monkeypatch):
    interpreted(monkeypatch)
    prompt = Prompt.from_symbols(QWEN, ["<VV>"], video_grid_thw=[[2, 2, 2]])
    with pytest.raises(ValueError, match="second_per_grid_ts must"):
        rope_index(prompt, form="kernels", second_per_grid_ts=seconds)


@pytest.mark.parametrize("separate", [True, False], ids=["frames", "block"])
def test_grids_may_be_left_over_where_an_adapter_allows_it(separate):
    spec = spec_of("qwen3_vl" if separate else "qwen2_vl", "transformers")

    @few_examples
    @given(FITTING["short conversations"](spec))
    def check(prompt):
        extra = torch.tensor([[1, 5, 2], [1, 2, 6]])
        arguments = prompt.arguments()
        for name in ("image_grid_thw", "video_grid_thw"):
            given_ = arguments[name]
            arguments[name] = extra if given_ is None else torch.cat((given_, extra))
        buffers = launched(spec, arguments, allow_unused_grids=True, round_grid_sides=True)
        assert not buffers.faults.any()
        assert_same(buffers[:2], prompt.expected())
        assert launched(spec, arguments).faults.any()

    check()


def test_a_part_of_an_image_is_not_left_over():
    spec = spec_of("qwen2_vl", "transformers")
    prompt = Prompt.from_symbols(spec, ["t<II>"], image_grid_thw=[[1, 2, 6]])
    assert launched(spec, prompt.arguments(), allow_unused_grids=True).faults[2] != 0


@pytest.mark.parametrize("seconds", [8000, 8200])
def test_times_beyond_the_largest_half_are_refused(seconds, monkeypatch):
    interpreted(monkeypatch)
    prompt = Prompt.from_symbols(QWEN, ["t<VV>"], video_grid_thw=[[2, 2, 2]])
    given_ = {"second_per_grid_ts": torch.tensor([seconds], dtype=torch.float16)}
    message = refusal(prompt, form="eager", **given_)
    assert (message is None) == (seconds == 8000)
    assert refusal(prompt, form="kernels", **given_) == message


def test_seconds_that_are_missing_are_refused(monkeypatch):
    interpreted(monkeypatch)
    prompt = Prompt.from_symbols(
        replace(QWEN, default_seconds=None), ["t<VV>"], video_grid_thw=[[2, 2, 2]]
    )
    message = refusal(prompt, form="eager")
    assert message is not None
    assert refusal(prompt, form="kernels") == message


def test_what_is_outside_of_the_arguments_is_not_read():
    prompt = Prompt.from_symbols(QWEN, ["t<V>"], video_grid_thw=[[1, 2, 2]])
    # `get_rope_index` refuses them: each video has its seconds.
    with pytest.raises(Exception, match="outside of its arguments"):
        launched(QWEN, prompt.arguments(), second_per_grid_ts=[])
