"""A plan that goes on is the plan of the whole."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import spec_of
from packings import sequences
from support import assert_same, grid_list, grid_tensor

from tests.plans.cases import GLM_IMAGE, QWEN, SPECS, integers
from vecrope import extend_plan, plan_rope_index

MORE_SPECS = {
    **SPECS,
    "ernie4_5_vl_moe-transformers": spec_of("ernie4_5_vl_moe", "transformers"),
    "qwen2_vl-sglang": spec_of("qwen2_vl", "sglang"),
}


def arguments_of(prompts):
    """Return the tokens of prompts, one after the other, and their grids."""
    spec, seconds = prompts[0].spec, []
    for prompt in prompts:
        default = [spec.default_seconds] * len(grid_list(prompt.video_grid_thw))
        own = prompt.second_per_grid_ts
        seconds += default if own is None else map(float, own)
    images, videos = (
        grid_tensor([grid for prompt in prompts for grid in grid_list(getattr(prompt, name))])
        for name in ("image_grid_thw", "video_grid_thw")
    )
    return {
        "input_ids": torch.cat([prompt.input_ids[0] for prompt in prompts]),
        "image_grid_thw": images,
        "video_grid_thw": videos,
        "second_per_grid_ts": seconds if spec.video_time == "seconds" else None,
    }


def bounds_of(lengths):
    return integers([0, *lengths]).cumsum(0)


def lengths_of(prompts):
    return [prompt.input_ids.shape[1] for prompt in prompts]


def answer_of(function):
    """Return what a function does, or None where it refuses."""
    try:
        return function()
    except ValueError:
        return None


@pytest.mark.parametrize("spec", MORE_SPECS.values(), ids=MORE_SPECS.keys())
def test_the_next_turn_goes_on_as_the_whole(spec):
    turn = sequences(spec, hostile=spec.mask_rule == "skip")

    @given(st.lists(st.tuples(turn, turn), min_size=1, max_size=3), st.data())
    def check(rows, data):
        firsts, seconds = zip(*rows, strict=True)
        first, second = arguments_of(firsts), arguments_of(seconds)
        plan = plan_rope_index(spec=spec, **first, cu_seqlens=bounds_of(lengths_of(firsts)))
        whole = answer_of(
            lambda: plan_rope_index(
                spec=spec,
                **arguments_of([prompt for row in rows for prompt in row]),
                cu_seqlens=bounds_of([sum(lengths_of(row)) for row in rows]),
            )
        )
        got = answer_of(
            lambda: extend_plan(
                plan,
                spec=spec,
                **second,
                cu_seqlens=bounds_of(lengths_of(seconds)),
            )
        )
        assert (got is None) == (whole is None)
        if got is not None:
            assert_same(
                (got.position_ids(), got.rope_deltas, got.decode(2), got.row_bounds),
                (whole.position_ids(), whole.rope_deltas, whole.decode(2), whole.row_bounds),
            )
            index = integers(data.draw(st.lists(st.integers(0, 40), min_size=3, max_size=3)))
            index = index.expand(len(rows), -1)
            assert_same([got.at(index)], [whole.at(index)])

    check()


@pytest.mark.parametrize("convention", ["sglang", "transformers"])
def test_a_video_that_was_opened_before_the_cut_goes_on(convention):
    spec = spec_of("glm4v", convention)
    start, end, image = spec.video_start_token_id, spec.video_end_token_id, spec.image_token_id
    previous, new = [7, start, 8], [image, image, end, 9]
    grids = {"video_grid_thw": integers([[1, 2, 4]])}
    plan = plan_rope_index(integers([previous]), spec)
    tokens = {"cu_seqlens": integers([0, 4])}
    same = extend_plan(plan, integers(new)[:0], spec, cu_seqlens=integers([0, 0]))
    assert_same([same.rows], [plan.rows])
    got = extend_plan(same, integers(new), spec, **grids, **tokens)
    whole = plan_rope_index(integers([previous + new]), spec, **grids)
    assert_same([got.position_ids()], [whole.position_ids()[:, 0]])
    with pytest.raises(ValueError, match="beyond the last grid"):
        extend_plan(plan, integers(new), spec, image_grid_thw=grids["video_grid_thw"], **tokens)


def test_a_request_without_new_tokens_stays_as_it_is():
    plan = plan_rope_index(integers([[7, 8], [8, 9]]), QWEN)
    got = extend_plan(plan, integers([5, 6, 7]), QWEN, cu_seqlens=integers([0, 0, 3]))
    assert got.slice(0, 6)[0].tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert got.row_bounds.tolist() == [0, 2, 7]
    same = extend_plan(plan, integers([5])[:0], QWEN, cu_seqlens=integers([0, 0, 0]))
    assert_same([same.rows, same.position_ids()], [plan.rows, plan.position_ids().flatten(1)])


def test_behind_padding_on_the_left_and_rows_without_a_token():
    mask = integers([[0, 0, 1, 1]])
    plan = plan_rope_index(integers([[7, 7, 7, 7]]), QWEN, attention_mask=mask)
    got = extend_plan(plan, integers([5, 6]), QWEN, cu_seqlens=integers([0, 2]))
    assert got.position_ids()[0].tolist() == [0, 0, 0, 1, 2, 3]
    none = plan_rope_index(torch.zeros((1, 0), dtype=torch.int64), QWEN)
    got = extend_plan(none, integers([5, 6]), QWEN, cu_seqlens=integers([0, 2]))
    assert got.slice(0, 3)[0].tolist() == [[0, 1, 2]]


GLM = SPECS["glm4v-sglang"]
TEXT = integers([[7, 8]])
REFUSED = {
    "a family of its own rule": (
        GLM_IMAGE,
        {},
        r"a plan of glm_image \(transformers\) cannot be extended: glm_image has a rule of its own",
    ),
    "another family": (
        QWEN,
        {"spec": GLM},
        r"spec must be that of the plan, qwen2_vl \(transformers\), got glm4v \(sglang\)",
    ),
    "another number of rows": (
        QWEN,
        {"cu_seqlens": integers([0, 1, 2])},
        r"cu_seqlens must have shape \(2,\), a sequence for each row of the plan, got \(3,\)",
    ),
}


@pytest.mark.parametrize(("spec", "changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(spec, changes, message):
    arguments = {"spec": spec, "cu_seqlens": integers([0, 2]), **changes}
    with pytest.raises(ValueError, match=message):
        extend_plan(plan_rope_index(TEXT, spec), TEXT[0], **arguments)


@pytest.mark.parametrize("spec", [GLM, MORE_SPECS["qwen2_vl-sglang"]], ids=["last", "adjacent"])
def test_a_plan_that_was_made_of_types_needs_types(spec):
    types = torch.zeros_like(TEXT)
    for options in ({}, {"max_groups": 4}):
        plan = plan_rope_index(TEXT, spec, mm_token_type_ids=types, **options)
        bounds = integers([0, 2])
        with pytest.raises(ValueError, match="mm_token_type_ids must be given: row 0 of the plan"):
            extend_plan(plan, TEXT[0], spec, cu_seqlens=bounds)
        got = extend_plan(plan, TEXT[0], spec, cu_seqlens=bounds, mm_token_type_ids=types[0])
        assert got.position_ids()[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("spec", MORE_SPECS.values(), ids=MORE_SPECS.keys())
def test_a_plan_with_a_capacity_knows_the_same_markers(spec):
    names = "video_start_token_id", "video_end_token_id", "vision_start_token_id"
    ids = [getattr(spec, name) for name in names if getattr(spec, name) is not None]
    rows = integers([[7, *(ids * 2)[:3], *ids, *[7] * 9][:8], [*[7] * 5, *ids, 7, 7, 7][:8]])
    plans = [plan_rope_index(rows, spec, max_groups=number) for number in (None, 9)]
    assert torch.equal(plans[0].rows, plans[1].rows)
