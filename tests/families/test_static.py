"""Every set of rules where nothing may depend on values: fake tensors and torch.compile."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from oracles import each_rule, spec_of
from support import (
    assert_no_answer,
    assert_same,
    fitting,
    grid_list,
    roomy,
    rope_index,
)
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from vecrope import get_rope_index
from vecrope.testing import Prompt

# A device that is not the CPU, of which any build of torch has fake tensors.
WHERE = {"cpu": {"form": "static"}, "meta": {}}
each_device = pytest.mark.parametrize("device", WHERE)


@pytest.fixture
def fake():
    with FakeTensorMode():
        yield


def fake_arguments(spec, device):
    ids = torch.empty((2, 7), dtype=torch.int64, device=device)
    grids = torch.empty((3, 3), dtype=torch.int32, device=device)
    arguments = {
        "attention_mask": torch.empty_like(ids, dtype=torch.bool),
        "mm_token_type_ids": torch.empty_like(ids),
        "image_grid_thw": grids,
        "video_grid_thw": grids,
    }
    if spec.video_time == "seconds":
        arguments["second_per_grid_ts"] = torch.empty(3, dtype=torch.float32, device=device)
    return ids, arguments


@pytest.mark.usefixtures("fake")
@each_device
@each_rule
def test_no_operation_depends_on_values(spec, device):
    ids, arguments = fake_arguments(spec, device)
    for left_out in ((), *((name,) for name in arguments), tuple(arguments)):
        given_ones = {name: value for name, value in arguments.items() if name not in left_out}
        if "video_grid_thw" in left_out:
            given_ones.pop("second_per_grid_ts", None)
        position_ids, rope_deltas = get_rope_index(
            ids, spec, validate=False, **given_ones, **WHERE[device]
        )
        assert (tuple(position_ids.shape), tuple(rope_deltas.shape)) == ((3, 2, 7), (2, 1))
        assert position_ids.dtype == rope_deltas.dtype == torch.int64
        assert position_ids.device.type == rope_deltas.device.type == device


@pytest.mark.usefixtures("fake")
@each_device
@each_rule
def test_packed_no_operation_depends_on_values(spec, device):
    ids, arguments = fake_arguments(spec, device)
    for name in ("attention_mask", "mm_token_type_ids"):
        arguments[name] = arguments[name].flatten()
    bounds = torch.empty(5, dtype=torch.int32, device=device)
    position_ids, rope_deltas = get_rope_index(
        ids.flatten(), spec, cu_seqlens=bounds, validate=False, **arguments, **WHERE[device]
    )
    assert (tuple(position_ids.shape), tuple(rope_deltas.shape)) == ((3, 14), (4, 1))


@pytest.mark.usefixtures("fake")
def test_the_probe_catches_what_is_planted():
    spec = spec_of("qwen2_5_vl", "sglang")
    ids, arguments = fake_arguments(spec, "meta")
    get_rope_index(ids, spec, validate=False, **arguments)
    with pytest.raises(DataDependentOutputException):
        get_rope_index(ids, spec, validate=False, **arguments)[0].max().item()


# torch.compile


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    yield torch.compile(get_rope_index, fullgraph=True, dynamic=True, backend=counter), counter
    torch._dynamo.reset()


def steady(prompt):
    """Make sizes two or more and seconds a float32 tensor: torch compiles for each kind."""
    if prompt.spec.video_time == "seconds":
        seconds = prompt.second_per_grid_ts
        if seconds is None:
            seconds = [0.5] * len(grid_list(prompt.video_grid_thw))
        prompt = replace(prompt, second_per_grid_ts=torch.as_tensor(seconds).float())
    return roomy(prompt)


def warm_up(spec):
    """Return a prompt of sizes that differ: torch compiles for the equality of two that do not."""
    row = "<I>" + ("[I]" if spec.video_token_id is None else "t<V>")
    merge = spec.spatial_merge_size
    images = [[1, merge, merge]] * 2
    videos = [[spec.temporal_merge_size, merge, merge]] * 2
    return Prompt.from_symbols(
        spec,
        [row.ljust(17, "t")] * 2,
        mask=["1" * 17] * 2,
        image_grid_thw=images + [[0, 0, 0]] * 2,
        video_grid_thw=videos + [[0, 0, 0]] * 3,
        second_per_grid_ts=torch.ones(5) if spec.video_time == "seconds" else None,
    )


# Each rule occurs in one of these, or where GLM-4V alone is compiled.
COMPILED = [
    *(("qwen2_5_vl", convention) for convention in ("transformers", "vllm")),
    ("qwen3_vl", "sglang"),
    ("ernie4_5_vl_moe", "transformers"),
    ("glm4v", "vllm"),
]


@pytest.mark.parametrize(("model_type", "convention"), COMPILED)
def test_compiled_equals_eager_and_compiles_once(model_type, convention, compiled):
    function, counter = compiled
    spec = spec_of(model_type, convention)
    first = warm_up(spec)
    assert_same(rope_index(first, function), first.expected())

    @settings(max_examples=10)
    @given(fitting(spec))
    def check(prompt):
        prompt = steady(prompt)
        assert_same(rope_index(prompt, function), prompt.expected())

    check()
    assert counter.frame_count == 1
    misfit = first.image_grid_thw.roll(2, 0) * 2
    assert_no_answer(rope_index(first, function, image_grid_thw=misfit))


def test_compiled_an_image_without_its_marker_gives_no_answer(compiled):
    function, _ = compiled
    spec = spec_of("qwen3_vl", "sglang")
    rows, grids = ["<I>", "tIt"], {"image_grid_thw": [[1, 2, 2]] * 2}
    assert_no_answer(rope_index(Prompt.from_symbols(spec, rows, **grids), function))
    prompt = Prompt.from_symbols(spec, ["<I>", "t<I"], **grids)
    assert_same(rope_index(prompt, function), prompt.expected())
