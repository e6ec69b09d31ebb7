"""SGLang's function for GLM-4V: any prompt, against the loop and SGLang itself."""

import itertools
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.wheels import Wheel, load
from tests.integrations.sglang.glm4v_calls import (
    CONFIG,
    NO_GRID,
    SPEC,
    answer,
    assert_same,
    parameters,
    prompt_of,
)
from vecrope.integrations.sglang import get_rope_index_glm4v
from vecrope.testing import assert_matches, conversations, token_soup

SOURCE = "sglang/srt/layers/rotary_embedding/mrope_rope_index.py"

# Any prompt


def with_grids(prompt):
    """Return the prompt with empty grids where it has none: all tokens must not be text."""
    if prompt.image_grid_thw is None and prompt.video_grid_thw is None:
        return replace(prompt, image_grid_thw=NO_GRID)
    return prompt


def is_sound(t, h, w):
    return t >= 1 and min(h, w) >= SPEC.spatial_merge_size


def as_sglang_reads(prompt):
    """Round the sides of the grids down, and drop an ill-formed grid with all behind it."""
    grids = {}
    for name in ("image_grid_thw", "video_grid_thw"):
        if getattr(prompt, name) is not None:
            rows = getattr(prompt, name).tolist()
            sound = itertools.takewhile(lambda row: row == [0] * 3 or is_sound(*row), rows)
            read = [[t, h - h % 2, w - w % 2] for t, h, w in sound]
            grids[name] = torch.tensor(read, dtype=torch.int64).view(-1, 3)
    return replace(prompt, **grids)


@given(
    conversations(SPEC)
    | conversations(SPEC, touching=True)
    | token_soup(SPEC, zero_grids=True)
    | token_soup(SPEC, touching=True, fit=False, zero_grids=True)
)
def test_answers_and_refusals_are_those_of_the_loop(prompt):
    prompt = with_grids(prompt)
    as_read = as_sglang_reads(prompt)

    def function(**_):
        return answer(prompt)

    assert_matches(function, as_read, allow_left_over=True)


# SGLang itself


@pytest.fixture(scope="module")
def sglang():
    path = os.environ.get("VECROPE_SGLANG_WHEEL")
    if not path:
        pytest.skip("VECROPE_SGLANG_WHEEL must be the path of a wheel of SGLang 0.5.23")
    wheel = Wheel(Path(path), "sglang")
    assert wheel.version == "0.5.23"
    name = "get_rope_index_glm4v"
    function = load(wheel, SOURCE, name, torch=torch, itertools=itertools)[name]
    return SimpleNamespace(
        function=function,
        rope_index=lambda input_ids, *, image_grid_thw, video_grid_thw, attention_mask, **_: (
            function(input_ids, CONFIG, image_grid_thw, video_grid_thw, attention_mask)
        ),
    )


def test_the_signature_is_the_wheels(sglang):
    assert parameters(get_rope_index_glm4v) == parameters(sglang.function)


MASKS = {
    "as it is": lambda mask: mask,
    "bool": torch.Tensor.bool,
    "floating-point": torch.Tensor.float,
    "2 where 0": lambda mask: mask + 2 * (mask == 0),
}


@st.composite
def disguised(draw, prompts):
    """Draw a prompt with a mask of any dtype, grids as tensors or lists, or no grids at all."""
    prompt = draw(prompts)
    if prompt.attention_mask is not None:
        disguise = MASKS[draw(st.sampled_from(sorted(MASKS)))]
        prompt = replace(prompt, attention_mask=disguise(prompt.attention_mask))
    grids = {"image_grid_thw": prompt.image_grid_thw, "video_grid_thw": prompt.video_grid_thw}
    given_as = draw(st.sampled_from(["tensors", "lists", "none"]))
    if given_as != "tensors":
        lists = given_as == "lists"
        grids = {k: v.tolist() if lists and v is not None else None for k, v in grids.items()}
    return replace(prompt, **grids)


@given(data=st.data())
def test_conversations_get_the_wheels_answer(sglang, data):
    prompt = data.draw(disguised(conversations(SPEC)))
    assert_same(answer(prompt), answer(prompt, sglang.rope_index))


def has_text_in_every_row(prompt):
    text = prompt.input_ids != SPEC.image_token_id
    if prompt.attention_mask is not None:
        text &= prompt.attention_mask == 1
    return bool(text.any(1).all())


def has_a_grid_of_zeros(prompt):
    grids = (prompt.image_grid_thw, prompt.video_grid_thw)
    return any(not any(row) for rows in grids if rows is not None for row in rows)


@given(data=st.data())
@pytest.mark.parametrize("fit", [True, False], ids=["grids that fit", "any grids"])
def test_token_soup_gets_the_wheels_answer_if_it_gets_two(sglang, fit, data):
    prompt = data.draw(disguised(token_soup(SPEC, fit=fit)))
    # Without text the positions of a row may be a single one, which SGLang spreads over all tokens.
    assume(has_text_in_every_row(prompt) and not has_a_grid_of_zeros(prompt))
    try:
        expected = answer(prompt, sglang.rope_index)
    except Exception:
        assert not fit
        return
    try:
        got = answer(prompt)
    except ValueError:
        assert not fit  # the loop says whether to refuse
        return
    assert_same(got, expected)


# A GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("left_over", [False, True], ids=["", "a grid left over"])
def test_with_grids_answers_lie_where_the_ids_do(left_over):
    grids = [[1, 2, 4]] + [[1, 2, 2]] * left_over
    prompt = prompt_of("tIIt", "ttII", mask=["1111", "0111"], image_grid_thw=[[1, 2, 4], *grids])
    expected = prompt.expected(allow_left_over=True)
    got = answer(replace(prompt, input_ids=prompt.input_ids.cuda()))
    assert_same(got, [tensor.cuda() for tensor in expected])
