"""What is traced with `validate`, run on values: the answer, or none where something misfits."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from omni_support import rope_index, spec_of
from own_support import SHORT_CONTEXT, SPECS, answer, each_spec, minicpm_spec
from support import assert_no_answer, assert_same

from vecrope import get_decode_position_ids, get_rope_index
from vecrope.inputs import Inputs
from vecrope.own_rules.dispatch import own_rope_index
from vecrope.prepare import prepare
from vecrope.testing import Prompt, conversations, token_soup


def static_answer(prompt, **changes):
    arguments = {**prompt.arguments(), **changes}
    inputs = prepare(Inputs(**arguments), prompt.spec, validate=True).inputs
    with patch("torch.compiler.is_compiling", lambda: True):
        return own_rope_index(inputs, prompt.spec, validate=True)


@each_spec
def test_prompts_are_answered(spec):
    @given(conversations(spec))
    def check(prompt):
        assert_same(static_answer(prompt), prompt.expected())

    check()


@each_spec
def test_what_is_refused_has_no_answer(spec):
    @given(token_soup(spec))
    def check(prompt):
        try:
            want = answer(prompt)
        except ValueError:
            assert_no_answer(static_answer(prompt))
        else:
            assert_same(static_answer(prompt), want)

    check()


def test_types_stand_for_the_markers_of_bailing():
    prompt = Prompt.from_symbols(SPECS["bailing"], ["tIIt"], image_grid_thw=[[1, 2, 4]])
    assert_no_answer(static_answer(prompt))
    types = {"mm_token_type_ids": torch.tensor([[0, 1, 1, 0]])}
    want = answer(prompt, **types)
    assert_same(static_answer(prompt, **types), want)
    assert want[0][2, 0].tolist() == [0, 1, 2, 2]


def test_masked_tokens_of_bailing_are_not_outside_of_its_context():
    spec = replace(SHORT_CONTEXT, mask_rule="skip", padding_value=99)
    row, mask = "tt" + "t" * 9 + "<It", "00" + "1" * 12
    prompt = Prompt.from_symbols(spec, [row], mask=[mask], image_grid_thw=[[1, 2, 2]])
    assert_same(static_answer(prompt), answer(prompt))
    assert static_answer(prompt)[0][0, 0].tolist() == [99, 99, *range(12)]


def test_the_room_for_what_is_generated_is_read_where_values_may_be():
    prompt = Prompt.from_symbols(
        SPECS["glm_image, transformers"], ["ttt"], image_grid_thw=[[1, 2, 3], [1, 1, 2]]
    )
    unchecked = answer(prompt, get_decode_position_ids, validate=False)
    assert_same(unchecked, answer(prompt, get_decode_position_ids))
    assert unchecked[0].shape == (1, 3, 9)


@pytest.mark.parametrize("bounds", [[0, 2, 4], [0, 3, 4]], ids=str)
def test_bounds_are_checked_by_the_operator_of_the_host(bounds):
    spec = minicpm_spec("transformers")
    ids = torch.full((4,), 3)
    arguments = {"spec": spec, "cu_seqlens": torch.tensor(bounds)}
    assert_same(get_rope_index(ids, validate=False, **arguments), get_rope_index(ids, **arguments))
    wrong = {**arguments, "cu_seqlens": torch.tensor([0, 3, 9])}
    assert_no_answer(get_rope_index(ids, validate=False, **wrong))


def test_listed_seconds_are_taken_by_the_operator_of_the_host():
    prompt = Prompt.from_symbols(
        spec_of("qwen2_5_omni", "transformers", 2),
        ["t<VVVV>t"],
        video_grid_thw=[[2, 2, 4]],
        second_per_grids=[1.5],
    )
    listed = rope_index(prompt, second_per_grids=[1.5], validate=False)
    assert_same(listed, prompt.expected())
