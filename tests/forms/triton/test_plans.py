"""Plans made and read by kernels, in the interpreter: the answers of the CPU's own plans."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import spec_of
from support import assert_no_answer, assert_same, rope_index

from tests.forms.triton.test_families import few_examples, packed, small
from tests.plans.cases import CALLS, read_off
from vecrope import concatenate_plans, plan_rope_index
from vecrope.forms.triton import launch
from vecrope.inputs import Inputs
from vecrope.plans.group_plan import GroupPlan
from vecrope.testing import Prompt

QWEN = spec_of("qwen2_vl", "transformers")
MASKED = Prompt.from_symbols(
    QWEN,
    ["t<IIIttIII>t<VV>", "<VVVV>tttttttttt"],
    mask=["0111100111111111", "1111111111101100"],
    image_grid_thw=[[1, 4, 6]],
    video_grid_thw=[[1, 2, 4], [2, 2, 4]],
)


def by_kernels():
    return patch("vecrope.forms.select._why_no_kernels_for", lambda _: None)


def test_a_plan_is_read_in_every_way():
    expected = rope_index(MASKED, plan_rope_index)
    steps = [0, 3], [9, 20]
    want = read_off(expected, steps)
    with by_kernels():
        plan = rope_index(MASKED, plan_rope_index)
        assert_same(read_off(plan, steps), want)
        # One that was made elsewhere has other tables.
        assert_same(read_off(expected, steps), want)
    assert isinstance(plan, GroupPlan)
    # It was checked, so that it has no room for more.
    assert len(plan.entries) == 9
    assert plan.entries.untyped_storage().nbytes() == plan.entries.nbytes


@pytest.mark.parametrize("rows", [[], [1], [0, 1, 1, 0, 1]], ids=str)
def test_rows_are_selected_joined_and_replaced(rows):
    def moved(plan):
        plans = (
            plan.select(rows),
            concatenate_plans([plan, plan.select(rows), plan]),
            plan.replace([0], plan.select([1])),
        )
        return [tensor for own in plans for tensor in (own.position_ids(), own.rows)]

    expected = rope_index(MASKED, plan_rope_index)
    want = moved(expected)
    with by_kernels():
        assert_same(moved(rope_index(MASKED, plan_rope_index)), want)
        assert_same(moved(expected), want)


@pytest.mark.parametrize(
    "name",
    [("glm4v", "transformers"), ("qwen2_5_vl", "sglang"), ("qwen3_vl", "transformers")],
    ids="-".join,
)
def test_plans_by_kernels_are_those_of_the_cpu(name):
    spec = spec_of(*name)

    @few_examples
    @given(small(spec), st.booleans())
    def check(prompt, flat):
        arguments = packed(prompt) if flat else prompt.arguments()
        expected = plan_rope_index(spec=spec, **arguments)
        with by_kernels():
            plan = plan_rope_index(spec=spec, **arguments)
            assert torch.equal(plan.position_ids(), expected.position_ids())
        assert torch.equal(plan.rows, expected.rows)
        # A row's bound and what begins there are one entry.
        assert len(plan.entries) <= len(expected.entries)
        assert plan.time_scale.shape[1] == expected.time_scale.shape[1]
        # The kernels do not know whether a video has a next frame.
        if expected.time_scale.is_floating_point():
            assert plan.time_scale.dtype == expected.time_scale.dtype

    check()


@pytest.mark.parametrize(
    "seconds", [None, [0.3], torch.tensor([0.3]), torch.tensor([0.3]).bfloat16()], ids=str
)
@pytest.mark.parametrize("name", ["transformers", "sglang", "vllm"])
def test_a_plan_holds_seconds_as_the_cpu_does(name, seconds):
    spec = spec_of("qwen2_5_vl", name)
    rows = ["t<II>" + "t<" + "V" * 15 + ">"]
    grids = {"image_grid_thw": [[1, 2, 4]], "video_grid_thw": [[15, 2, 2]]}
    prompt = Prompt.from_symbols(spec, rows, **grids)
    expected = rope_index(prompt, plan_rope_index, second_per_grid_ts=seconds)
    with by_kernels():
        plan = rope_index(prompt, plan_rope_index, second_per_grid_ts=seconds)
        assert torch.equal(plan.position_ids(), expected.position_ids())
    assert plan.time_scale.dtype == expected.time_scale.dtype


@pytest.mark.parametrize("types", [None, torch.tensor([0])], ids=["ids", "types"])
def test_an_empty_sequence_holds_the_markers_that_the_others_hold(types):
    arguments = {"cu_seqlens": torch.tensor([0, 1, 1]), "mm_token_type_ids": types}
    expected = plan_rope_index(torch.tensor([7]), QWEN, **arguments)
    with by_kernels():
        plan = plan_rope_index(torch.tensor([7]), QWEN, **arguments)
    assert torch.equal(plan.rows, expected.rows)


def test_a_plan_without_room_gives_no_answer():
    with by_kernels():
        enough = rope_index(MASKED, plan_rope_index, max_groups=9, validate=False)
        assert torch.equal(enough.position_ids(), MASKED.expected()[0])
        plan = rope_index(MASKED, plan_rope_index, max_groups=8, validate=False)
        assert_no_answer((plan.position_ids(), plan.rope_deltas))
        assert not plan.position_ids(text_positions=True)[0].any()
        with pytest.raises(ValueError, match="max_groups must be at least 9 for this input, got 8"):
            rope_index(MASKED, plan_rope_index, max_groups=8)


def test_of_no_token_nothing_is_launched():
    with by_kernels():
        plan = rope_index(MASKED, plan_rope_index)
    with by_kernels(), patch("vecrope.forms.triton.plans.kernels", None):
        assert plan.slice(3, 3).shape == (3, 2, 0)
        assert plan.at(torch.empty((2, 0), dtype=torch.int64)).shape == (3, 2, 0)
        assert plan.step([0, 3], [0, 0]).shape == (3, 0)
        empty = Prompt.from_symbols(QWEN, ["", ""])
        assert rope_index(empty, plan_rope_index).position_ids().shape == (3, 2, 0)


def test_what_does_not_fit_is_named():
    with by_kernels(), pytest.raises(ValueError, match="row 0 holds image tokens beyond the last"):
        rope_index(MASKED, plan_rope_index, image_grid_thw=None)


def test_a_step_writes_the_callers_buffer():
    plan = rope_index(MASKED, plan_rope_index)
    computed, scheduled = CALLS[0][2:]
    out = torch.full((3, 30), -5, dtype=torch.int32)
    want = plan.step(computed, scheduled, num_tokens=20)
    with by_kernels():
        got = plan.step(computed.int(), scheduled.short(), num_tokens=20, out=out)
    assert torch.equal(got.long(), want)
    assert got.data_ptr() == out.data_ptr()
    assert (out[:, 20:] == -5).all()


def test_what_is_compiled_for_a_plan_without_videos_is_not_launched_for_one_with_seconds(
    monkeypatch,
):
    class Compiled:
        def __getitem__(self, _):
            return lambda *_: self

    monkeypatch.setattr(launch, "_KERNELS", (Compiled(),) * 3)
    spec = spec_of("qwen2_5_vl", "transformers")
    own = launch.launcher(spec, torch.device("cpu"), False, False, False)
    monkeypatch.setattr(own, "_compiled", {})
    ids, grid = torch.zeros((1, 4), dtype=torch.int64), torch.tensor([[1, 2, 4]])
    for grids in ((grid, None), (grid, grid)):
        inputs = Inputs(ids, *grids, second_per_grid_ts=None)
        launch.fused_plan(inputs, spec, validate=False, capacity=4)
    first, second = own._compiled
    assert [key[-1] for key in (first, second)] == [torch.int32, torch.float32]
