"""The omni families on a GPU: the answers of the CPU, one wait for the device, no CUDA graph."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from omni_support import each_omni, rope_index, spec_of
from support import assert_same, count_waits

from vecrope.testing import conversations, token_soup
from vecrope.testing.sound import video_with_sound

each_validate = pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def on_gpu(prompt):
    return replace(
        prompt,
        **{
            name: value.cuda()
            for name, value in vars(prompt).items()
            if isinstance(value, torch.Tensor)
        },
    )


@pytest.mark.gpu
@needs_gpu
@each_omni
@each_validate
def test_on_a_gpu_the_answer_is_that_of_the_cpu(model_type, convention, validate):
    @given(conversations(spec_of(model_type, convention, 13), zeros=True))
    def check(prompt):
        assert_same(rope_index(on_gpu(prompt), validate=validate), rope_index(prompt))

    check()


@pytest.mark.gpu
@needs_gpu
@each_omni
def test_on_a_gpu_a_misfit_is_refused_in_the_same_words(model_type, convention):
    @given(token_soup(spec_of(model_type, convention, 13)))
    def check(prompt):
        try:
            expected = rope_index(prompt)
        except ValueError as error:
            with pytest.raises(ValueError, match=f"^{re.escape(str(error))}$"):
                rope_index(on_gpu(prompt))
        else:
            assert_same(rope_index(on_gpu(prompt)), expected)

    check()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.gpu
@needs_gpu
@each_omni
@each_validate
def test_on_a_gpu_a_call_waits_once(model_type, convention, validate):
    spec = spec_of(model_type, convention, 13)
    prompt = video_with_sound(spec, frames=4, height=2, width=2, seconds=0.5)
    prompt = replace(prompt, attention_mask=torch.ones_like(prompt.input_ids))
    given_prompt = on_gpu(prompt)
    rope_index(given_prompt, validate=validate)
    answer, number = count_waits(lambda: rope_index(given_prompt, validate=validate))
    assert number == 1
    assert_same(answer, rope_index(prompt))


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.gpu
@needs_gpu
@each_omni
@each_validate
def test_on_a_gpu_a_graph_cannot_capture_a_call(model_type, convention, validate):
    spec = spec_of(model_type, convention, 13)
    prompt = video_with_sound(spec, frames=4, height=2, width=2, seconds=0.5)
    given_prompt = on_gpu(prompt)
    refused = pytest.raises(RuntimeError, match="a graph of the cuda device cannot capture this")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        rope_index(given_prompt, validate=validate)
    assert_same(rope_index(given_prompt, validate=validate), rope_index(prompt))
