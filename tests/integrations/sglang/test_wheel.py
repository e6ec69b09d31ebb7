"""SGLang's functions: any prompt, against the loop and SGLang itself."""

import inspect
from dataclasses import replace

import numpy as np
import omni_support
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from own_support import needs_sglang
from support import assert_same, grid_tensor

from tests.integrations.sglang.calls import (
    FAMILIES,
    GRIDS,
    NAMES,
    call,
    prompt_of,
    spec_for,
    wheel,
)
from vecrope.integrations import sglang as ours
from vecrope.testing import assert_matches, conversations, token_soup

each_family = pytest.mark.parametrize("model_type", FAMILIES)

# Any prompt


def with_grids(prompt):
    """Return the prompt with empty grids where it has none: all tokens must not be text."""
    if prompt.image_grid_thw is None and prompt.video_grid_thw is None:
        return replace(prompt, image_grid_thw=grid_tensor([]))
    return prompt


@each_family
def test_answers_and_refusals_are_those_of_the_loop(model_type):
    spec = spec_for(model_type)

    @given(conversations(spec) | token_soup(spec, zero_grids=True))
    def check(prompt):
        prompt = with_grids(prompt)
        assert_matches(lambda **_: call(prompt), prompt, allow_left_over=True)

    check()


def test_omni_answers_are_those_of_the_loop():
    @given(conversations(omni_support.spec_of("qwen3_omni_moe", "sglang", 13.0)))
    def check(prompt):
        if prompt.image_grid_thw is None and prompt.video_grid_thw is None:
            prompt = replace(prompt, image_grid_thw=grid_tensor([]))
        assert_same(call(prompt), prompt.expected())

    check()


# SGLang itself


@needs_sglang
@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_the_wheels(name):
    def of(functions):
        signature = inspect.signature(getattr(functions, name))
        return [(p.name, p.kind, p.default) for p in signature.parameters.values()]

    assert of(ours) == of(wheel())


@st.composite
def careless(draw, prompts):
    """Draw a prompt with grids that are left over, and with sides a little too large."""
    prompt = draw(prompts)
    extra = draw(st.booleans())
    more = draw(st.integers(0, prompt.spec.spatial_merge_size - 1))
    changes = {}
    for name in GRIDS:
        grids = getattr(prompt, name)
        if grids is not None:
            grids = grids + torch.tensor([0, more, more])
            changes[name] = torch.cat((grids, grid_tensor([[1, 2, 2]] * extra)))
    if prompt.second_per_grid_ts is not None and extra:
        seconds = prompt.second_per_grid_ts
        as_tensor = isinstance(seconds, torch.Tensor)
        longer = [*seconds, 1.0]
        changes["second_per_grid_ts"] = (
            torch.tensor(longer, dtype=seconds.dtype) if as_tensor else longer
        )
    return replace(prompt, **changes)


@needs_sglang
@each_family
def test_conversations_get_the_wheels_answer(model_type):
    @given(careless(conversations(spec_for(model_type))))
    def check(prompt):
        assert_same(call(prompt), call(prompt, wheel()))

    check()


@needs_sglang
@pytest.mark.parametrize("name", ["intern_s2_preview", "interns2_mobius"])
def test_other_names_get_the_wheels_answer(name):
    like = {"intern_s2_preview": "qwen2_vl", "interns2_mobius": "qwen3_vl"}[name]

    @given(conversations(spec_for(like)))
    def check(prompt):
        assert_same(call(prompt, model_type=name), call(prompt, wheel(), model_type=name))

    check()


@needs_sglang
@each_family
def test_fitting_soup_gets_the_wheels_answer(model_type):
    spec = spec_for(model_type)

    @given(token_soup(spec))
    def check(prompt):
        # There SGLang looks at the token after the last.
        assume(spec.vision_start_token_id not in prompt.input_ids[:, -1].tolist())
        assert_same(call(prompt), call(prompt, wheel()))

    check()


@needs_sglang
@omni_support.each_rate
def test_omni_conversations_get_the_wheels_answer(rate):
    @given(conversations(omni_support.spec_of("qwen3_omni_moe", "sglang", rate)))
    def check(prompt):
        assert_same(call(prompt), call(prompt, wheel()))

    check()


@needs_sglang
@pytest.mark.parametrize("rate", [2, 2.5])
@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param([np.float32(0.3), np.float32(1.7)], id="NumPy's numbers"),
        pytest.param([np.float64(0.3), np.int64(2)], id="NumPy's double numbers"),
        pytest.param(np.array([0.3, 1.7]), id="an array"),
        pytest.param(np.array([0.3, 1.7], dtype=np.float32), id="a float array"),
        pytest.param([torch.tensor(0.3), torch.tensor(1.7)], id="tensors"),
        pytest.param([torch.tensor(0.3).double(), torch.tensor(1.7).double()], id="double tensors"),
        pytest.param([torch.tensor(1), torch.tensor(2)], id="whole tensors"),
        pytest.param(torch.tensor([[0.3], [1.7]]), id="a column"),
    ],
)
def test_seconds_of_any_kind_get_the_wheels_answer(rate, seconds):
    prompt = prompt_of("qwen2_5_vl", "<VVVVVt<VVV", video_grid_thw=[[5, 2, 2], [3, 2, 2]])
    prompt = replace(prompt, spec=replace(prompt.spec, tokens_per_second=rate))
    answers = [call(prompt, f, second_per_grid_ts=seconds) for f in (ours, wheel())]
    assert_same(*answers)


@needs_sglang
@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8])
def test_grids_of_short_integers_get_the_wheels_answer(dtype):
    prompt = prompt_of("qwen3_vl", "t<It<IIt", image_grid_thw=[[1, 2, 2], [1, 4, 2]])
    grids = prompt.image_grid_thw.to(dtype)
    assert_same(*(call(prompt, f, image_grid_thw=grids) for f in (ours, wheel())))


@needs_sglang
@pytest.mark.parametrize("rate", [2, 2.5])
def test_whole_seconds_get_the_wheels_answer(rate):
    prompt = prompt_of("qwen2_5_vl", "<VVV", video_grid_thw=[[3, 2, 2]])
    prompt = replace(prompt, spec=replace(prompt.spec, tokens_per_second=rate))
    for seconds in (torch.tensor([3]), [3]):
        answers = [call(prompt, f, second_per_grid_ts=seconds) for f in (ours, wheel())]
        assert_same(*answers)
