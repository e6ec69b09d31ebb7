"""On a CUDA device: plans are those of the CPU, by a counted number of kernels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import each_rule
from support import assert_same, fitting
from torch.profiler import ProfilerActivity, profile

from tests.cuda.test_families import moved, packed
from tests.plans.cases import read_off
from vecrope import concatenate_plans, plan_rope_index

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.filterwarnings("ignore:Warning. Profiler clears events"),
]


@each_rule
def test_plans_are_those_of_the_cpu(spec):
    @settings(max_examples=2 * settings.default.max_examples, deadline=None)
    @given(fitting(spec), st.booleans(), st.data())
    def check(prompt, flat, data):
        arguments = packed(prompt) if flat else prompt.arguments()
        expected = plan_rope_index(spec=spec, **arguments)
        numbers = st.lists(st.integers(0, 12), min_size=len(expected), max_size=len(expected))
        steps = data.draw(numbers), data.draw(numbers)
        want = read_off(expected, steps)
        plan = plan_rope_index(spec=spec, **moved(arguments))
        assert_same([tensor.cpu() for tensor in read_off(plan, steps)], want)
        rows = torch.tensor(data.draw(st.lists(st.integers(0, len(plan) - 1), max_size=4)))
        joined, joined_on_cpu = (concatenate_plans([own, own]) for own in (plan, expected))
        for got, want_ in ((joined, joined_on_cpu), (plan.select(rows), expected.select(rows))):
            assert_same([got.position_ids().cpu()], [want_.position_ids()])
            assert_same([got.rows.cpu()], [want_.rows])

    check()


def launched(call):
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in trace.events())
