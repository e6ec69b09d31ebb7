"""On a CUDA device: the answers and errors of the CPU."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import (
    assert_same,
    fitting,
    misfitting,
    rope_index,
)
from torch.profiler import ProfilerActivity, profile

from tests.cuda.calls import SPECS, a_prompt, each_convention, few_examples, on_cuda
from vecrope import get_rope_index
from vecrope.testing import Prompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


def cuda_rope_index(prompt, *, by_types=False, **options):
    arguments = prompt.arguments()
    if not by_types:
        arguments["mm_token_type_ids"] = None
    return get_rope_index(spec=prompt.spec, **on_cuda(arguments), **options)


def assert_on_cuda(answer):
    assert {tensor.device.type for tensor in answer} == {"cuda"}


# Equality with the CPU


@each_convention
@pytest.mark.parametrize("by_types", [False, True], ids=["ids", "types"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "table"])
def test_cuda_equals_the_loop(fused, by_types, spec, monkeypatch):
    if not fused:
        monkeypatch.setattr("vecrope.forms.select.HAS_TRITON", False)

    @few_examples
    @given(fitting(spec))
    def check(prompt):
        answer = cuda_rope_index(prompt, by_types=by_types)
        assert_on_cuda(answer)
        assert_same(answer, prompt.expected())

    check()


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")
def test_the_kernels_are_what_is_launched():
    prompt = a_prompt()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        cuda_rope_index(prompt, validate=False)
        torch.cuda.synchronize()
    names = {event.key for event in trace.key_averages() if event.self_device_time_total}
    assert {"summarise", "write"} <= names


@each_convention
@pytest.mark.parametrize("by_types", [False, True], ids=["ids", "types"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_long_rows_on_cuda(dtype, by_types, spec):
    # Several blocks a row; videos, frames, and masked tokens that go on over their edges.
    video, images = "[" + "<IIII>t" * 150 + "]", "<IIIIII>" * 60
    rows = ["tt" + video + images, "t" * 702 + images, "t" * (1534 - 3)]
    seq_len = max(map(len, rows))
    prompt = Prompt.from_symbols(
        spec,
        [row.ljust(seq_len, "t") for row in rows],
        mask=["1" * seq_len, ("0" * 700).ljust(seq_len, "1"), "0" * seq_len],
        image_grid_thw=[[1, 4, 6]] * 120,
        video_grid_thw=[[150, 4, 4]],
    )
    prompt = replace(prompt, input_ids=prompt.input_ids.to(dtype))
    position_ids, rope_deltas = prompt.expected()
    answer = cuda_rope_index(prompt, by_types=by_types)
    assert_same(answer, (position_ids.to(dtype), rope_deltas))


def shifted(values, offset):
    """Return a contiguous copy on the device, so many numbers into its storage."""
    storage = torch.zeros(values.numel() + offset, dtype=values.dtype, device="cuda")
    return storage[offset:].view(values.shape).copy_(values)


@each_convention
def test_tensors_may_start_anywhere(spec):
    # For the dtypes of the first call, whose tensors are aligned, the kernels are compiled.
    prompt = a_prompt(spec)
    for offset in range(4):
        arguments = {name: shifted(value, offset) for name, value in prompt.arguments().items()}
        assert_same(get_rope_index(spec=spec, **arguments), prompt.expected())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("attention_mask", 2, "row 1, token 3: attention_mask must hold 0 or 1, got 2"),
        ("attention_mask", -1, "row 1, token 3: attention_mask must hold 0 or 1, got -1"),
        ("mm_token_type_ids", 3, ": mm_token_type_ids must hold 0 or 1 or 2, got 3"),
        ("mm_token_type_ids", -1, ": mm_token_type_ids must hold 0 or 1 or 2, got -1"),
    ],
)
def test_codes_that_are_none(name, value, message):
    arguments = on_cuda(a_prompt().arguments())
    arguments[name][1, 3] = value
    with pytest.raises(ValueError, match=message):
        get_rope_index(spec=SPECS["sglang"], **arguments)


def test_what_types_stand_at_masked_tokens_does_not_matter():
    prompt = a_prompt()
    arguments = on_cuda(prompt.arguments())
    arguments["mm_token_type_ids"][2, 0] = 7
    assert_same(get_rope_index(spec=prompt.spec, **arguments), prompt.expected())


def answer_or_message(function, prompt):
    try:
        return function(prompt), None
    except ValueError as error:
        return (), str(error)


@each_convention
def test_errors_are_those_of_the_cpu(spec):
    @few_examples
    @given(misfitting(spec))
    def check(prompt):
        expected, message = answer_or_message(rope_index, prompt)
        answer, raised = answer_or_message(cuda_rope_index, prompt)
        assert raised == message
        assert_same(answer, expected)

    check()


@each_convention
def test_misfits_that_are_not_checked_do_no_harm(spec):
    @few_examples
    @given(misfitting(spec), st.booleans())
    def check(prompt, by_types):
        position_ids, rope_deltas = cuda_rope_index(prompt, by_types=by_types, validate=False)
        # An index out of bounds would stop the device here, for good.
        torch.cuda.synchronize()
        assert position_ids.shape == (3, *prompt.input_ids.shape)
        assert rope_deltas.shape == (len(prompt.input_ids), 1)

    check()


@pytest.mark.parametrize(
    "elsewhere",
    [
        ["image_grid_thw"],
        ["image_grid_thw", "video_grid_thw"],
        ["attention_mask", "mm_token_type_ids"],
    ],
    ids=["one", "grids", "mask and types"],
)
@pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])
def test_what_is_on_the_cpu_is_moved_to_the_ids(validate, elsewhere):
    prompt = a_prompt()
    arguments = prompt.arguments()
    arguments = on_cuda(arguments) | {name: arguments[name] for name in elsewhere}
    answer = get_rope_index(spec=prompt.spec, validate=validate, **arguments)
    assert_on_cuda(answer)
    assert_same(answer, prompt.expected())


def test_grids_on_cuda_are_moved_to_ids_on_the_cpu():
    prompt = a_prompt()
    grids = {name: value for name, value in prompt.arguments().items() if "grid" in name}
    for form in ({}, {"form": "static"}):
        answer = rope_index(prompt, **on_cuda(grids), **form)
        assert {tensor.device.type for tensor in answer} == {"cpu"}
        assert_same(answer, prompt.expected())


def test_packed_int32_on_cuda():
    prompt = a_prompt()
    batch, seq_len = prompt.input_ids.shape
    position_ids, rope_deltas = get_rope_index(
        prompt.input_ids.flatten().int().cuda(),
        prompt.spec,
        attention_mask=prompt.attention_mask.flatten().bool().cuda(),
        cu_seqlens=(torch.arange(batch + 1, dtype=torch.int32) * seq_len).cuda(),
        image_grid_thw=prompt.image_grid_thw.cuda(),
        video_grid_thw=prompt.video_grid_thw.cuda(),
    )
    expected, expected_deltas = prompt.expected()
    assert_same((position_ids, rope_deltas), (expected.flatten(1).int(), expected_deltas))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_a_batch_without_tokens_on_cuda(shape):
    ids = torch.empty(shape, dtype=torch.int64, device="cuda")
    answer = get_rope_index(ids, SPECS["sglang"])
    assert_on_cuda(answer)
    assert_same(answer, (ids.new_empty((3, *shape)), ids.new_zeros((shape[0], 1))))
