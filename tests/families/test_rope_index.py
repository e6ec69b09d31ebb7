"""Every family against the loop, rearranged, and with images and frames that touch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    EVERYWHERE,
    build,
    each_core,
    each_rule,
    spec_of,
)
from support import (
    assert_same,
    choose_rows,
    fitting,
    rope_index,
)

from tests.families.prompts import FORMS, any_prompt, by_ids, each_form
from vecrope import get_rope_index
from vecrope.testing import Prompt, assert_matches

# Of what differs little from one set of rules to the next.
HALF = settings.default.max_examples // 2


@each_core
def test_the_loop_is_equalled_or_both_refuse(model_type, convention):
    spec = spec_of(model_type, convention)

    @given(any_prompt(spec))
    def check(prompt):
        for form in FORMS.values():
            assert_matches(by_ids(spec, **form), prompt)

    check()


@each_rule
def test_types_say_what_the_ids_say(spec):
    @settings(max_examples=HALF)
    @given(fitting(spec))
    def check(prompt):
        for form in FORMS.values():
            answer = rope_index(prompt, mm_token_type_ids=prompt.mm_token_type_ids, **form)
            assert_same(answer, prompt.expected())

    check()


@each_form
@each_rule
def test_types_are_believed_where_the_ids_would_fit_as_well(spec, form):
    if spec.image_token_id is None:  # the family has no images, whatever types say
        with pytest.raises(ValueError, match="image tokens beyond the last grid"):
            get_rope_index(
                torch.zeros((1, 2), dtype=torch.int64),
                spec,
                mm_token_type_ids=torch.tensor([[0, 1]]),
                **form,
            )
        return
    side = 2 * spec.spatial_merge_size
    prompt = Prompt.from_symbols(spec, ["ttt<IIII>t"], image_grid_thw=[[1, side, side]])
    ids = Prompt.from_symbols(spec, ["<IIII>tttt"]).input_ids
    answer = rope_index(prompt, input_ids=ids, mm_token_type_ids=prompt.mm_token_type_ids, **form)
    assert_same(answer, prompt.expected())


@each_form
def test_a_video_may_begin_with_the_first_token(form):
    """By its type, though nothing stands before it that could tell it from a frame before."""
    position_ids, _ = get_rope_index(
        *(torch.zeros((1, 4), dtype=torch.int64), spec_of("glm4v", "vllm")),
        video_grid_thw=torch.tensor([[2, 2, 2]]),
        mm_token_type_ids=torch.tensor([[2, 0, 2, 0]]),
        **form,
    )
    assert position_ids.tolist() == [[[0, 1, 2, 3]]] * 3


@each_rule
def test_a_rows_answer_does_not_depend_on_the_others(spec):
    @settings(max_examples=HALF)
    @given(fitting(spec), st.data())
    def check(prompt, data):
        rows = data.draw(st.lists(st.integers(0, len(prompt.input_ids) - 1), min_size=1))
        position_ids, rope_deltas = rope_index(prompt)
        chosen = rope_index(choose_rows(prompt, rows))
        assert_same(chosen, (position_ids[:, rows], rope_deltas[rows]))

    check()


@each_rule
def test_packed_rows_are_answered_as_rows(spec):
    @settings(max_examples=HALF)
    @given(fitting(spec))
    def check(prompt):
        batch, seq_len = prompt.input_ids.shape
        mask = prompt.attention_mask
        packed = {
            "input_ids": prompt.input_ids.flatten(),
            "attention_mask": None if mask is None else mask.flatten(),
            "cu_seqlens": torch.arange(batch + 1) * seq_len,
        }
        position_ids, rope_deltas = rope_index(prompt)
        for form in FORMS.values():
            answer = rope_index(prompt, **packed, **form)
            assert_same(answer, (position_ids.flatten(1), rope_deltas))

    check()


@each_form
@each_rule
def test_int32_ids_give_positions_of_the_dtype_of_the_spec(spec, form):
    @settings(max_examples=HALF)
    @given(fitting(spec))
    def check(prompt):
        position_ids, rope_deltas = prompt.expected()
        dtype = {"ids": torch.int32, "int64": torch.int64}[spec.position_dtype]
        answer = rope_index(prompt, input_ids=prompt.input_ids.int(), **form)
        assert_same(answer, (position_ids.to(dtype), rope_deltas))

    check()


@each_form
@each_rule
def test_no_tokens_give_no_positions_of_the_dtype_of_the_spec(spec, form):
    ids = torch.empty((3, 0), dtype=torch.int32)
    position_ids, rope_deltas = get_rope_index(ids, spec, **form)
    assert position_ids.shape == (3, 3, 0)
    assert position_ids.dtype == (torch.int64 if spec.position_dtype == "int64" else torch.int32)
    assert_same([rope_deltas], [torch.zeros(3, 1, dtype=torch.int64)])


@pytest.mark.parametrize("convention", EVERYWHERE)
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl"])
def test_images_in_one_row_and_a_video_in_the_next(model_type, convention):
    grids = {"image_grid_thw": [[1, 2, 4]], "video_grid_thw": [[1, 2, 4]]}
    prompt = build(model_type, convention, ["t<II>t", "t<VV>t"], **grids)
    assert_same(rope_index(prompt), prompt.expected())


@pytest.mark.parametrize("convention", EVERYWHERE)
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "ernie4_5_vl_moe"])
def test_images_of_as_many_tokens_keep_their_sides(model_type, convention):
    for grids in ([[1, 2, 4], [1, 4, 2]], [[1, 4, 2], [1, 2, 4]]):
        prompt = build(model_type, convention, ["t<II>t<II>tt"], image_grid_thw=grids)
        assert_same(rope_index(prompt), prompt.expected())


@pytest.mark.parametrize("convention", ["transformers", "vllm"])
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl"])
def test_images_and_frames_may_touch(model_type, convention):
    grids = {"image_grid_thw": [[1, 2, 4]] * 2, "video_grid_thw": [[1, 2, 4]]}
    prompt = build(model_type, convention, ["tIIIIVVt"], **grids)
    assert_same(rope_index(prompt), prompt.expected())


@pytest.mark.parametrize("convention", EVERYWHERE)
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "ernie4_5_vl_moe"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_video_reaches_beyond_the_end_from_behind_images(rows, model_type, convention):
    for row in ("t<IIII>t<IIII>t[<VVVVVVVV>]", "[<VVVVVVVV>]t<IIII>t"):
        prompt = build(
            *(model_type, convention, [row, "t" * len(row)][:rows]),
            image_grid_thw=[[1, 4, 4]] * (row.count("I") // 4),
            video_grid_thw=[[8 * spec_of(model_type, convention).temporal_merge_size, 2, 2]],
        )
        assert_same(rope_index(prompt), prompt.expected())


@each_form
@pytest.mark.parametrize("padding_value", [0, 50])
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "ernie4_5_vl_moe"])
def test_masked_tokens_reach_nowhere_beside_a_video_that_reaches_far(
    model_type, padding_value, form
):
    prompt = build(
        *(model_type, "transformers", ["t<VVVVVVVV>tt", "t" * 13]),
        mask=["1" * 12 + "0", "0" * 13],
        fields={"padding_value": padding_value},
        video_grid_thw=[[8 * spec_of(model_type, "transformers").temporal_merge_size, 2, 2]],
    )
    assert_same(rope_index(prompt, **form), prompt.expected())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "rows", [["tt<", "II>", "<II"], ["ttt<", "II>t", "<II>"]], ids=["image last", "text last"]
)
@pytest.mark.parametrize("convention", EVERYWHERE)
def test_a_marker_at_the_end_of_a_row_announces_nothing_in_the_next(convention, rows, form):
    prompt = build("qwen2_vl", convention, rows, image_grid_thw=[[1, 2, 4]] * 2)
    if convention == "sglang":
        with pytest.raises(ValueError, match=r"row 1, image 0: its grid .* vision_start_token_id"):
            rope_index(prompt, **form)
    else:
        assert_same(rope_index(prompt, **form), prompt.expected())
