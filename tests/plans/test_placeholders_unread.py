"""Runs of placeholders where no value may be read."""

import pytest
import torch
from oracles import spec_of
from support import assert_no_answer, assert_same
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode

from tests.plans.placeholder_cases import (
    IMAGE,
    QWEN,
    SPECS,
    VIDEO,
    answer_of,
    arguments_of,
    each_function,
    each_spec,
    integers,
    runs,
)
from vecrope import (
    get_rope_index_from_placeholders,
    plan_from_placeholders,
)


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["glm4v-sglang", "qwen2_5_vl-vllm", "qwen3_vl-sglang"])
def test_compiled_equals_eager_and_compiles_once(name, counter):
    spec = SPECS[name]
    function = torch.compile(answer_of, fullgraph=True, backend=counter)
    merge, frames = spec.spatial_merge_size, spec.temporal_merge_size
    for grid, offsets in (([merge, 2 * merge], [1, 0]), ([2 * merge, merge], [3, 2])):
        found = integers([[offsets[0], 2, IMAGE, 0], [offsets[1], 2, VIDEO, 1]])
        arguments = arguments_of(
            found, [[1, *grid]], [[frames, *grid]], None, torch.int64, torch.int32
        )
        if spec.video_time == "seconds":
            arguments["second_per_grid_ts"] = integers([0.7])
        want = answer_of([6, 5], spec, arguments)
        assert_same(function([6, 5], spec, arguments), want)
        checked = get_rope_index_from_placeholders([6, 5], spec, **arguments)
        assert_same(want[:2], checked)
    assert counter.frame_count == 1


def test_where_no_value_may_be_read_a_run_may_hold_several_groups():
    function = torch.compile(answer_of, fullgraph=True, backend="eager")
    grids = integers([[1, 2, 4], [1, 4, 2]])
    apart = runs((1, 2, IMAGE), (3, 2, IMAGE), image_grid_thw=grids)
    whole = runs((1, 4, IMAGE), image_grid_thw=grids)
    want = answer_of(6, QWEN, whole)
    for arguments in (apart, whole):
        assert_same(function(6, QWEN, arguments), want)


def test_more_frames_in_one_run_than_there_is_room_for_give_no_answer():
    spec = spec_of("qwen3_vl", "vllm")
    grids = integers([[9, 2, 4]])
    arguments = runs((1, 18, VIDEO), video_grid_thw=grids)
    positions, deltas, planned, _ = torch.compile(answer_of, fullgraph=True, backend="eager")(
        20, spec, arguments
    )
    for answer in (positions, planned):
        assert_no_answer((answer, deltas))
    assert answer_of(20, spec, arguments)[0].amin() == 0


def fake_arguments(device):
    number = torch.empty(3, dtype=torch.int64, device=device)
    grids = torch.empty((2, 3), dtype=torch.int64, device=device)
    return {
        **dict.fromkeys(("offsets", "lengths", "modalities", "rows"), number),
        "image_grid_thw": grids,
        "video_grid_thw": grids,
    }


@each_spec
def test_unchecked_no_value_is_read(spec):
    # The numbers of tokens become a tensor of their own.
    with FakeTensorMode(allow_non_fake_inputs=True):
        positions, deltas, planned, chunk = answer_of([6, 5], spec, fake_arguments("meta"))
    assert (positions.shape, planned.shape, deltas.shape) == ((3, 11), (3, 11), (2, 1))
    assert chunk.shape == (3, 2, 10)
    assert {tensor.device.type for tensor in (positions, deltas, planned, chunk)} == {"meta"}


@each_spec
def test_unchecked_no_value_is_read_of_one_prompt(spec):
    arguments = fake_arguments("meta") | {"rows": None}
    with FakeTensorMode(allow_non_fake_inputs=True):
        positions, deltas, planned, _ = answer_of(11, spec, arguments)
    assert (positions.shape, planned.shape, deltas.shape) == ((3, 11), (3, 11), (1, 1))
    assert {tensor.device.type for tensor in (positions, deltas, planned)} == {"meta"}


@each_function
def test_checks_read_values(function):
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(ValueError, match="offsets must hold values, which are read here"),
    ):
        function([6, 5], QWEN, **fake_arguments("meta"))


def test_grids_on_the_host_are_moved_to_the_runs():
    arguments = fake_arguments("meta")
    arguments["image_grid_thw"] = torch.empty((2, 3), dtype=torch.int64)
    plan = plan_from_placeholders([6, 5], QWEN, **arguments, validate=False)
    assert plan.device.type == "meta"
