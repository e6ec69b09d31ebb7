import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CONVENTIONS, FITTING, assert_same, fitting, kept, misfitting, rope_index

from tests.rope_index.forms import (
    FORMS,
    OTHERS,
    SPECS,
    each_convention,
    each_form,
    special_ids,
    static_rope_index,
)
from vecrope.testing import Prompt, Refusal


def anything(spec):
    return fitting(spec) | misfitting(spec)


@pytest.mark.parametrize(
    ("spec", "strategy"),
    [
        pytest.param(SPECS[convention], strategy, id=f"glm4v-{convention}-{name}")
        for convention in CONVENTIONS
        for name, strategy in {**FITTING, "misfitting soup": misfitting}.items()
    ]
    + [pytest.param(spec, anything, id=f"{name}-anything") for name, spec in OTHERS.items()],
)
def test_every_form_equals_the_loop_or_both_refuse(spec, strategy):
    @given(strategy(spec))
    def check(prompt):
        try:
            expected = prompt.expected()
        except Refusal:
            messages = set()
            for form in FORMS.values():
                with pytest.raises(ValueError, match="grid") as error:
                    rope_index(prompt, form)
                messages.add(str(error.value))
            assert len(messages) == 1
            return
        for form in FORMS.values():
            assert_same(rope_index(prompt, form), expected)
        assert_same(rope_index(prompt, static_rope_index, validate=False), expected)

    check()


@each_convention
@each_form
@pytest.mark.parametrize(
    ("row", "grids"),
    [
        pytest.param("II", {"image_grid_thw": [[1, 2, 2]]}, id="an image"),
        pytest.param("ItII", {"image_grid_thw": [[1, 2, 2]] * 2}, id="a second image"),
        pytest.param("IIIt", {"image_grid_thw": [[1, 2, 4]]}, id="an image in part"),
        pytest.param("[ItII]", {"video_grid_thw": [[2, 2, 2]]}, id="a frame"),
    ],
)
def test_a_run_longer_than_the_last_grid_is_refused(row, grids, form, spec):
    with pytest.raises(ValueError, match="grid"):
        rope_index(Prompt.from_symbols(spec, [row], **grids), form)


@each_convention
def test_types_replace_the_ids(spec):
    ids = [*special_ids(spec), 11]

    @given(fitting(spec), st.integers(0, 2**32))
    def check(prompt, seed):
        rng = torch.Generator().manual_seed(seed)
        shape = prompt.input_ids.shape
        types = torch.where(
            kept(prompt), prompt.mm_token_type_ids, torch.randint(3, shape, generator=rng)
        )
        misleading = torch.tensor(ids)[torch.randint(len(ids), shape, generator=rng)]
        for form in FORMS.values():
            answer = rope_index(prompt, form, input_ids=misleading, mm_token_type_ids=types)
            assert_same(answer, prompt.expected())

    check()


@each_form
@each_convention
def test_types_are_believed_where_the_ids_would_fit_as_well(spec, form):
    prompt = Prompt.from_symbols(spec, ["tttIIIIt"], image_grid_thw=[[1, 4, 4]])
    ids = Prompt.from_symbols(spec, ["tIIIIttt"]).input_ids
    types = prompt.mm_token_type_ids
    answer = rope_index(prompt, form, input_ids=ids, mm_token_type_ids=types)
    assert_same(answer, prompt.expected())


@each_convention
def test_misfits_that_are_not_checked_get_an_answer_of_the_right_form(spec):
    @given(misfitting(spec), st.booleans())
    def check(prompt, as_types):
        types = prompt.mm_token_type_ids if as_types else None
        position_ids, rope_deltas = rope_index(
            prompt, static_rope_index, validate=False, mm_token_type_ids=types
        )
        assert position_ids.shape == (3, *prompt.input_ids.shape)
        assert rope_deltas.shape == (len(prompt.input_ids), 1)

    check()
