"""`assert_matches`, on right and wrong answers and on an upstream."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given

from tests.testing.searching import SGLANG, TRANSFORMERS, grids, matches, smallest, unmasked
from vecrope.testing import Prompt, assert_matches, conversations, token_soup

# assert_matches


def answer(prompt):
    return lambda **_: tuple(tensor.clone() for tensor in prompt.expected())


PROMPT = Prompt.from_symbols(
    SGLANG, ["ttt", "tII"], mask=["111", "011"], image_grid_thw=[[1, 2, 4]]
)


def test_a_right_answer_matches():
    assert_matches(answer(PROMPT), PROMPT)


def test_the_function_gets_the_prompts_arguments():
    def function(*, input_ids, mm_token_type_ids, image_grid_thw, video_grid_thw, attention_mask):
        assert input_ids is PROMPT.input_ids
        assert mm_token_type_ids is PROMPT.mm_token_type_ids
        assert image_grid_thw is PROMPT.image_grid_thw
        assert video_grid_thw is None
        assert attention_mask is PROMPT.attention_mask
        return PROMPT.expected()

    assert_matches(function, PROMPT)


def shifted(index, value):
    position_ids, rope_deltas = PROMPT.expected()
    (position_ids if len(index) == 3 else rope_deltas)[index] += value
    return position_ids, rope_deltas


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param(
            lambda: shifted((2, 1, 2), 5),
            r"position_ids differ in row 1, first at token 2, axis W: expected 1, got 6\n"
            r"  expected \[1, 0, 1\]\n"
            r"  got      \[1, 0, 6\]\n"
            r"for Prompt\.from_symbols\(.*\['ttt', 'tII'\], mask=",
            id="a position",
        ),
        pytest.param(
            lambda: shifted((slice(None), 0, slice(1, 3)), 1),
            r"row 0, first at token 1, axis T: expected 1, got 2",
            id="several positions",
        ),
        pytest.param(
            lambda: shifted((1, 0), 1),
            r"rope_deltas differ in row 1: expected -1, got 0\nfor Prompt",
            id="a delta",
        ),
        pytest.param(
            lambda: (PROMPT.expected()[0].int(), PROMPT.expected()[1]),
            r"position_ids must have dtype torch.int64, got torch.int32",
            id="dtype of positions",
        ),
        pytest.param(
            lambda: (PROMPT.expected()[0], PROMPT.expected()[1].float()),
            r"rope_deltas must have dtype torch.int64, got torch.float32",
            id="dtype of deltas",
        ),
        pytest.param(
            lambda: (PROMPT.expected()[0][:, :1], PROMPT.expected()[1]),
            r"position_ids must have shape \(3, 2, 3\), got \(3, 1, 3\)",
            id="shape of positions",
        ),
        pytest.param(
            lambda: (PROMPT.expected()[0], PROMPT.expected()[1][:, 0]),
            r"rope_deltas must have shape \(2, 1\), got \(2,\)",
            id="shape of deltas",
        ),
    ],
)
def test_a_wrong_answer_is_described(wrong, message):
    with pytest.raises(AssertionError, match=message):
        assert_matches(lambda **_: wrong(), PROMPT)


def test_an_exception_where_the_reference_answers_is_passed_on():
    def function(**_):
        raise IndexError("too far")

    with pytest.raises(IndexError, match="too far"):
        assert_matches(function, PROMPT)


def test_where_the_reference_refuses_the_function_has_to_raise():
    refused = Prompt.from_symbols(SGLANG, ["I"])

    def function(**_):
        raise IndexError("too far")

    assert_matches(function, refused)
    with pytest.raises(
        AssertionError,
        match=r"the reference refuses this prompt \(row 0 has 1 tokens that no grid of "
        r"image_grid_thw is left for\) and the function does not raise\nfor Prompt",
    ):
        assert_matches(answer(PROMPT), refused)


def test_left_over_grids_are_refused_or_ignored():
    prompt = Prompt.from_symbols(SGLANG, ["t"], image_grid_thw=[[1, 2, 2]])
    positions = torch.zeros(3, 1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(AssertionError, match="left over"):
        assert_matches(lambda **_: positions, prompt)
    assert_matches(lambda **_: positions, prompt, allow_left_over=True)


# An upstream


def transformers_rope_index(**arguments):
    from transformers.models.glm4v.modeling_glm4v import Glm4vModel

    vision = SimpleNamespace(spatial_merge_size=TRANSFORMERS.spatial_merge_size)
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=vision),
        get_vision_position_ids=partial(Glm4vModel.get_vision_position_ids, None),
    )
    return Glm4vModel.get_rope_index(model, **arguments)


@given(prompt=conversations(TRANSFORMERS))
def test_transformers_matches(prompt):
    assert_matches(transformers_rope_index, prompt)


@given(prompt=token_soup(TRANSFORMERS).filter(lambda prompt: "" not in unmasked(prompt)))
def test_transformers_matches_on_soup(prompt):
    assert_matches(transformers_rope_index, prompt)


def test_transformers_fails_on_touching_images():
    def differs(prompt):
        return not grids(prompt)[1] and not matches(transformers_rope_index, prompt)

    found = smallest(conversations(TRANSFORMERS, touching=True), differs)
    assert found.symbols == ["<II>"]
    assert grids(found) == ([[1, 2, 2], [1, 2, 2]], [])
