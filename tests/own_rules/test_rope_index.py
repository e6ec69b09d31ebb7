from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from own_support import SHORT_CONTEXT, SPECS, answer, each_spec, single_rows
from support import assert_same, grid_list, grid_tensor, kept
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.nn.functional import pad

from vecrope import get_rope_index
from vecrope.families.rules import Hunyuan
from vecrope.testing import Prompt, Refusal, conversations, token_soup

each_validate = pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])


# The reference


@each_spec
@each_validate
def test_prompts_are_answered_as_by_the_reference(spec, validate):
    @given(conversations(spec))
    def check(prompt):
        assert_same(answer(prompt, validate=validate), prompt.expected())

    check()


@each_spec
def test_what_the_reference_refuses_is_refused(spec):
    @given(token_soup(spec))
    def check(prompt):
        try:
            expected = prompt.expected()
        except Refusal:
            with pytest.raises(ValueError, match=r"must|grid|token"):
                answer(prompt)
        else:
            assert_same(answer(prompt), expected)

    check()


def test_a_prompt_beyond_its_context_is_refused_by_the_reference_too():
    @given(conversations(SHORT_CONTEXT))
    def check(prompt):
        try:
            expected = prompt.expected()
        except Refusal:
            with pytest.raises(ValueError, match="must be at least -1 and less than 12"):
                answer(prompt)
        else:
            assert_same(answer(prompt), expected)

    check()


def test_the_reference_refuses_an_image_of_several_frames_where_vllm_does():
    prompt = Prompt.from_symbols(SPECS["isaac"], ["II"], image_grid_thw=[(2, 2, 2)])
    with pytest.raises(Refusal, match="2 frames"):
        prompt.expected()


@pytest.mark.parametrize(
    ("name", "row", "grid", "message"),
    [
        ("glm_image, sglang", "t<I<I>t", (1, 1, 3), "has a start inside of the image from 2 to 5"),
        ("isaac", "tIt", (1, 3, 2), "divisible by spatial_merge_size 2"),
        ("isaac", "tIt", (1, 2, 3), "divisible by spatial_merge_size 2"),
    ],
)
def test_what_the_reference_says_of_what_it_refuses(name, row, grid, message):
    prompt = Prompt.from_symbols(SPECS[name], [row], image_grid_thw=[grid])
    with pytest.raises(Refusal, match=message):
        prompt.expected()
    with pytest.raises(ValueError, match="row 0"):
        answer(prompt)


# Rows, sequences, dtypes


@each_spec
def test_a_batch_is_answered_as_its_rows_one_by_one(spec):
    @given(conversations(spec))
    def check(prompt):
        position_ids, rope_deltas = answer(prompt, validate=False)
        for row, single in enumerate(single_rows(prompt)):
            alone = answer(single, validate=False)
            ours = position_ids[:, row : row + 1], rope_deltas[row : row + 1]
            if isinstance(spec.own_rule, Hunyuan):
                # Its images are numbered on across rows.
                alone, ours = (alone[0][:-1], alone[1]), (ours[0][:-1], ours[1])
            assert_same(ours, alone)

    check()


@each_spec
@each_validate
def test_packed_rows_are_answered_as_padded_ones(spec, validate):
    @given(conversations(spec))
    def check(prompt):
        arguments = prompt.arguments()
        ids, mask = arguments.pop("input_ids"), kept(prompt)
        del arguments["attention_mask"]
        bounds = pad(mask.sum(1).cumsum(0), (1, 0)).int()
        got = get_rope_index(ids[mask], spec, cu_seqlens=bounds, validate=validate, **arguments)
        position_ids, rope_deltas = answer(prompt, validate=validate)
        assert_same(got, (position_ids[:, mask], rope_deltas))

    check()


@each_spec
def test_int32_ids_are_answered_alike(spec):
    @given(conversations(spec))
    def check(prompt):
        position_ids, rope_deltas = answer(prompt, validate=False)
        ids = prompt.arguments()["input_ids"].int()
        got = answer(prompt, input_ids=ids, validate=False)
        assert torch.equal(got[0].long(), position_ids)
        assert torch.equal(got[1].long(), rope_deltas)
        assert got[0].dtype == (torch.int32 if spec.position_dtype == "ids" else torch.int64)

    check()


@each_spec
@each_validate
@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0, 0)])
def test_there_may_be_no_tokens(spec, validate, shape):
    ids = torch.empty(shape, dtype=torch.int64)
    for grids in (None, torch.empty((0, 3), dtype=torch.int64), torch.zeros((2, 3)).long()):
        position_ids, rope_deltas = get_rope_index(
            ids, spec, image_grid_thw=grids, validate=validate
        )
        assert position_ids.shape[1:] == shape
        assert rope_deltas.tolist() == [[0]] * shape[0]


@each_spec
@each_validate
def test_grids_of_zeros_are_no_images(spec, validate):
    @given(conversations(spec), st.data())
    def check(prompt, data):
        grids = grid_list(prompt.image_grid_thw)
        first = 0 if prompt.images_per_sample is None else len(grids)
        grids.insert(data.draw(st.integers(first, len(grids))), (0, 0, 0))
        assume(prompt.image_grid_thw is not None)
        with_zeros = replace(prompt, image_grid_thw=grid_tensor(grids))
        assert_same(answer(with_zeros, validate=validate), answer(prompt, validate=validate))

    check()


# Static shapes


def test_the_probe_catches_what_reads_values():
    with FakeTensorMode():
        ids = torch.empty((2, 7), dtype=torch.int64, device="meta")
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            ids.nonzero()
