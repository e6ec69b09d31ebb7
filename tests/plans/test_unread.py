"""Plans that are compiled, exported and on a device: no value is read."""

import pytest
import torch
from support import assert_same, no_synchronisation
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.utils._python_dispatch import TorchDispatchMode

from tests.plans.cases import (
    CALLS,
    GLM_IMAGE,
    PACED,
    QWEN,
    every_way,
    example,
    examples,
    integers,
    tensors_of,
)
from vecrope import (
    concatenate_plans,
    plan_rope_index,
)
from vecrope.testing import Prompt


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("spec", "dynamic"), [(QWEN, False), (PACED, True)], ids=["frames-static", "seconds-dynamic"]
)
def test_compiled_equals_eager_and_compiles_once(spec, dynamic, counter):
    function = torch.compile(every_way, fullgraph=True, dynamic=dynamic, backend=counter)
    answers = []
    for plan in examples(spec):
        for call in CALLS:
            got = function(plan, *call)
            assert_same(got, every_way(plan, *call))
            answers.append(got)
    assert counter.frame_count == 1
    assert not torch.equal(answers[0][-2], answers[-1][-2])


class EveryWay(torch.nn.Module):
    def forward(self, plan, *call):
        return every_way(plan, *call)


@pytest.mark.parametrize("spec", [QWEN, PACED], ids=["frames", "seconds"])
def test_exported_equals_eager(spec):
    plans = examples(spec)
    module = torch.export.export(EveryWay(), (plans[0], *CALLS[0])).module()
    for plan in plans:
        for call in CALLS:
            assert_same(module(plan, *call), every_way(plan, *call))


class NoCopyFromTheHost(TorchDispatchMode):
    """Raise where a tensor of the CPU is made one of another device."""

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given, made = tensors_of((args, kwargs)), tensors_of(result)
        if any(leaf.is_cpu for leaf in given) and not all(leaf.is_cpu for leaf in made):
            raise AssertionError(f"{function} copies from the host")
        return result


def fake_plan(spec=QWEN):
    rows = torch.empty((2, 6), dtype=torch.int64, device="meta")
    grids = torch.empty((2, 3), dtype=torch.int64, device="meta")
    return plan_rope_index(
        rows, spec, image_grid_thw=grids, video_grid_thw=grids, validate=False, max_groups=5
    )


PROMISED = {
    "slice": (lambda plan, _: plan.slice(2, 9), (3, 2, 7)),
    "at": (lambda plan, two: plan.at(two, validate=False), (3, 2)),
    "at, rows": (lambda plan, two: plan.at(two, two, validate=False), (3, 2)),
    "decode": (lambda plan, _: plan.decode(2, start=3), (3, 2, 2)),
    "decode, starts": (lambda plan, two: plan.decode(2, start=two), (3, 2, 2)),
    "step": (lambda plan, two: plan.step(two, two, num_tokens=9, validate=False), (3, 9)),
    "step, out": (
        lambda plan, two: plan.step(
            two, two, num_tokens=9, validate=False, out=plan.entries.new_empty((3, 12))
        ),
        (3, 9),
    ),
    "position_ids": (lambda plan, _: plan.position_ids(text_positions=True), (4, 2, 6)),
    "shard": (lambda plan, _: plan.shard(0, 2, text_positions=True), (4, 2, 3)),
}


@pytest.mark.parametrize("spec", [QWEN, PACED], ids=["frames", "seconds"])
@pytest.mark.parametrize(("call", "shape"), PROMISED.values(), ids=PROMISED.keys())
def test_no_value_is_read_and_none_copied_from_the_host(call, shape, spec):
    with FakeTensorMode():
        plan = fake_plan(spec)
        two = torch.empty(2, dtype=torch.int64, device="meta")
        with NoCopyFromTheHost():
            got = call(plan, two)
    assert (got.shape, got.device.type) == (shape, "meta")


READS = {
    "at": lambda plan, two: plan.at(two),
    "at, rows": lambda plan, two: plan.at(two, two),
    "step": lambda plan, two: plan.step(two, two, num_tokens=9),
    "step, the sum": lambda plan, two: plan.step(two, two, validate=False),
}


@pytest.mark.parametrize("call", READS.values(), ids=READS.keys())
def test_the_probe_catches_what_reads_values(call):
    with FakeTensorMode():
        plan, two = fake_plan(), torch.empty(2, dtype=torch.int64, device="meta")
        # What is checked is refused before it is read.
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException, ValueError)):
            call(plan, two)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_on_the_host_is_checked_there_and_copied(device):
    """So they cost no wait for the device but that of the copy."""
    plan = example(max_groups=12).to(device)
    got = plan.step([3, 0], integers([4, 2]))
    assert (got.shape, got.device.type) == ((3, 6), device)
    two = integers([0, 1])
    for got in (plan.at(two), plan.at(two, two), plan.decode(1, start=two)[:, :, 0]):
        assert (got.shape, got.device.type) == ((3, 2), device)
    if device == "meta":
        with pytest.raises(AssertionError, match="copies from the host"), NoCopyFromTheHost():
            plan.step([3, 0], [4, 2])


def test_nothing_depends_on_the_default_device():
    plan = example()

    def answers():
        joined = concatenate_plans([plan, plan])
        return plan.step([3, 0], [4, 2]), plan.slice(1, 9), plan.decode(2), joined.position_ids()

    want = answers()
    with torch.device("meta"):
        got = answers()
    assert {tensor.device.type for tensor in got} == {"cpu"}
    assert_same(got, want)


def batches(name):
    """Return a spec, ids and grids: of segments, of segments with a time scale, and of lines."""
    if name == "images to generate":
        ids = integers([[5, 6, 7, 16384, 7], [5, 16384, 7, 7, 7]])
        return GLM_IMAGE, ids, integers([[1, 2, 3], [1, 1, 2]])
    spec = {"frames": QWEN, "seconds": PACED}[name]
    prompt = Prompt.from_symbols(
        spec, ["t<II>tt", "<II>ttt"], image_grid_thw=[[1, 2, 4], [1, 4, 2]]
    )
    return spec, prompt.input_ids, prompt.image_grid_thw


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", ["frames", "seconds", "images to generate"])
def test_on_a_gpu_plans_are_those_of_the_cpu_and_nothing_waits(name):
    spec, ids, grids = batches(name)
    on_cpu = plan_rope_index(ids, spec, image_grid_thw=grids)
    ids, grids = ids.cuda(), grids.cuda()
    call = [values.cuda() for values in CALLS[0]]
    out = torch.empty((3, 6), dtype=torch.int64, device="cuda")
    with no_synchronisation():
        plan = plan_rope_index(ids, spec, image_grid_thw=grids, validate=False)
        got = (
            *every_way(plan, *call),
            plan.step(*call[2:], out=out, num_tokens=6, validate=False),
            plan.shard(0, 2, "zigzag", text_positions=True, pad_to_multiple_of=4),
        )
    want = (
        *every_way(on_cpu, *CALLS[0]),
        on_cpu.step(*CALLS[0][2:]),
        on_cpu.shard(0, 2, "zigzag", text_positions=True, pad_to_multiple_of=4),
    )
    assert_same([tensor.cpu() for tensor in got], want)
    # These copy some numbers from the host.
    joined, joined_on_cpu = concatenate_plans([plan, plan]), concatenate_plans([on_cpu, on_cpu])
    assert joined.device.type == "cuda"
    for ways in (lambda plan: plan.position_ids(), lambda plan: plan.decode(9)):
        assert_same([ways(joined).cpu()], [ways(joined_on_cpu)])
