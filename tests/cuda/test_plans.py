"""On a CUDA device: plans are those of the CPU, by a counted number of kernels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import each_rule, spec_of
from support import assert_same, count_waits, fitting, no_synchronisation
from torch.profiler import ProfilerActivity, profile

from bench.answers import make_spec, tensor_arguments
from bench.workloads import make_workload
from tests.cuda.test_families import moved, packed
from tests.plans.cases import read_off
from vecrope import concatenate_plans, plan_rope_index
from vecrope.testing import Prompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.filterwarnings("ignore:Warning. Profiler clears events"),
]


@each_rule
def test_plans_are_those_of_the_cpu(spec):
    @settings(max_examples=settings.default.max_examples, deadline=None)
    @given(fitting(spec), st.booleans(), st.data())
    def check(prompt, flat, data):
        arguments = packed(prompt) if flat else prompt.arguments()
        expected = plan_rope_index(spec=spec, **arguments)
        numbers = st.lists(st.integers(0, 12), min_size=len(expected), max_size=len(expected))
        steps = data.draw(numbers), data.draw(numbers)
        want = read_off(expected, steps)
        plan = plan_rope_index(spec=spec, **moved(arguments))
        assert_same([tensor.cpu() for tensor in read_off(plan, steps)], want)
        rows = data.draw(st.lists(st.integers(0, len(plan) - 1), max_size=4))
        joined, joined_on_cpu = (concatenate_plans([own, own]) for own in (plan, expected))
        for got, want_ in ((joined, joined_on_cpu), (plan.select(rows), expected.select(rows))):
            assert_same([got.position_ids().cpu()], [want_.position_ids()])
            assert_same([got.rows.cpu()], [want_.rows])

    check()


def test_seconds_behind_a_plan_without_videos():
    spec = spec_of("qwen2_5_vl", "transformers")
    for videos in ({}, {"video_grid_thw": [[2, 2, 2]]}):
        prompt = Prompt.from_symbols(spec, ["<VV>" if videos else "tttt"], **videos)
        plan = plan_rope_index(spec=spec, **moved(prompt.arguments()))
        assert_same([plan.position_ids().cpu()], prompt.expected()[:1])


def launched(call):
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in trace.events())


# Kernels and copies of each, at the most, and what they are.
LAUNCHES = {
    "made": 4,  # markers where they are counted; blocks and items; entries counted; written
    "expanded": 1,
    "sliced": 1,
    "sharded": 1,
    "stepped": 1,
    "stepped, by lists": 3,  # two lists copied
    "at": 1,
    "decoded": 4,  # two ranges, which are added to the next positions
    "selected": 4,  # the rows copied; chosen; their sizes read; entries copied
    "joined": 7,  # three tables joined; of two, sizes copied and starts moved
}


@pytest.fixture(scope="module", params=["glm4v", "qwen2_5_vl"])
def requests(request):
    """Return the plan of 256 requests, and calls of it by what they do."""
    workload = make_workload(f"mixed-batch-{request.param}", 4000, "cuda")
    spec, arguments = make_spec(workload, "transformers"), tensor_arguments(workload)
    options = {"validate": False, "max_groups": 4096}

    def make():
        return plan_rope_index(workload.input_ids, spec, **arguments, **options)

    plan = make()
    batch = concatenate_plans([plan] * (256 // len(plan)))
    done = torch.arange(len(batch), device="cuda", dtype=torch.int32) * 17
    ones = torch.ones_like(done)
    index = done.long().unsqueeze(1)
    step = {"num_tokens": len(batch), "validate": False}
    lists = done.tolist(), ones.tolist()
    return {
        "made": make,
        "expanded": batch.position_ids,
        "sliced": lambda: batch.slice(100, 612),
        "sharded": lambda: plan.shard(1, 4, "zigzag"),
        "stepped": lambda: batch.step(done, ones, **step),
        "stepped, by lists": lambda: batch.step(*lists, **step),
        "at": lambda: batch.at(index, validate=False),
        "decoded": lambda: batch.decode(4),
        "selected": lambda: batch.select([*range(0, len(batch), 2)]),
        "joined": lambda: concatenate_plans([plan] * 8),
    }


@pytest.mark.parametrize("name", LAUNCHES)
def test_each_takes_a_handful_of_kernels(name, requests):
    assert launched(requests[name]) <= LAUNCHES[name]


def test_a_step_allocates_once_and_nothing_waits(requests):
    for name in ("made", "expanded", "sliced", "sharded", "stepped", "at", "decoded"):
        requests[name]()
        with no_synchronisation():
            requests[name]()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    answer = requests["stepped"]()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] - before == 1
    assert answer.shape == (3, 256)


def test_a_long_step_is_that_of_the_cpu():
    workload = make_workload("mixed-batch-qwen2_5_vl", 4000)
    spec, arguments = make_spec(workload, "transformers"), tensor_arguments(workload)
    plan = plan_rope_index(workload.input_ids, spec, **arguments)
    on_cuda = plan.to("cuda")
    computed = [17 * row for row in range(len(plan))]
    scheduled = [(977 * row) % 3000 for row in range(len(plan))]
    want = plan.step(computed, scheduled)
    assert torch.equal(on_cuda.step(computed, scheduled).cpu(), want)
    out = torch.zeros((3, want.shape[1] + 7), dtype=torch.int32, device="cuda")
    on_cuda.step(computed, scheduled, out=out)
    assert torch.equal(out[:, :-7].cpu().long(), want)
    assert torch.equal(on_cuda.position_ids().cpu(), plan.position_ids())


@pytest.mark.parametrize("family", ["glm4v", "qwen2_5_vl"])
def test_a_checked_plan_waits_once_and_has_no_entry_too_many(family):
    workload, on_cpu = (make_workload(f"mixed-batch-{family}", 4000, on) for on in ("cuda", "cpu"))
    spec = make_spec(workload, "transformers")
    plan, number = count_waits(
        lambda: plan_rope_index(workload.input_ids, spec, **tensor_arguments(workload))
    )
    expected = plan_rope_index(on_cpu.input_ids, spec, **tensor_arguments(on_cpu))
    assert number == 1
    assert plan.nbytes <= expected.nbytes
    assert torch.equal(plan.position_ids().cpu(), expected.position_ids())
