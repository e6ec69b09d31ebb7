"""Arguments on a device are copied to the host in one wait, and answers back without one."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from omni_support import spec_of
from own_support import SPECS, minicpm_spec
from support import assert_same, at_most, count_waits

from vecrope import get_rope_index
from vecrope.inputs import Inputs, on_cpu, on_device
from vecrope.testing import conversations

OMNI = {family: spec_of(family, "transformers") for family in ("qwen2_5_omni", "qwen3_omni_moe")}
ALL = SPECS | OMNI | {"minicpmv4_7": minicpm_spec("transformers")}
each_spec = pytest.mark.parametrize("spec", ALL.values(), ids=ALL)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on(device, values, copies):
    """Return a tensor that says it is on a device, and appends how it is copied from there."""

    class Away(torch.Tensor):
        is_cpu = False
        aminmax = item = tolist = None  # to be read on the host alone

        @property
        def device(self):
            return torch.device(device)

        def to(self, target, *, non_blocking, memory_format):
            assert (target, memory_format) == ("cpu", torch.contiguous_format)
            copies.append((device, self.numel(), non_blocking))
            return self.as_subclass(torch.Tensor)

    return values.as_subclass(Away)


@pytest.fixture
def capturing(monkeypatch):
    """Return a list that says whether a graph captures what is launched on a CUDA device."""
    answers = [False]
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: answers[-1])
    return answers


def inputs_on(devices, copies, **changes):
    first, second = devices
    return Inputs(
        on(first, torch.tensor([[5, 6]]), copies),
        image_grid_thw=on(second, torch.tensor([[1, 2, 2]]), copies),
        attention_mask=on(first, torch.ones(1, 2), copies),
        audio_seqlens=on(first, torch.empty(0, dtype=torch.int64), copies),
        **changes,
    )


@pytest.mark.usefixtures("capturing")
def test_only_the_last_copy_that_is_one_waits():
    copies = []
    inputs = inputs_on(("cuda:0", "cuda:0"), copies, second_per_grid_ts=[0.5])
    got = on_cpu(inputs)
    assert copies == [
        ("cuda:0", 2, True),
        ("cuda:0", 3, True),
        ("cuda:0", 2, False),
        ("cuda:0", 0, True),
    ]
    assert got.input_ids.tolist() == [[5, 6]]
    assert got.image_grid_thw.tolist() == [[1, 2, 2]]
    assert got.second_per_grid_ts == [0.5]
    assert got.video_grid_thw is None


@pytest.mark.usefixtures("capturing")
def test_each_device_is_waited_for():
    copies = []
    on_cpu(inputs_on(("cuda:0", "cuda:1"), copies))
    assert [copy for copy in copies if not copy[2]] == [("cuda:1", 3, False), ("cuda:0", 2, False)]


def test_where_a_copy_may_not_go_on_each_one_waits():
    copies = []
    on_cpu(inputs_on(("mps", "mps"), copies))
    assert not any(non_blocking for _, _, non_blocking in copies)


def test_what_is_on_the_cpu_is_returned_as_it_is():
    inputs = Inputs(torch.tensor([[5]]), image_grid_thw=torch.tensor([[1, 2, 2]]))
    got = on_cpu(inputs)
    assert got.input_ids is inputs.input_ids
    assert got.image_grid_thw is inputs.image_grid_thw


def test_a_graph_cannot_capture_it(capturing):
    capturing.append(True)
    copies = []
    message = (
        "a graph of the cuda device cannot capture this call, which reads its arguments on the "
        "host; call it before the capture, and copy the positions into a tensor that the graph "
        "reads"
    )
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        on_cpu(inputs_on(("cuda:0", "cuda:0"), copies))
    assert not copies


@each_spec
@pytest.mark.usefixtures("capturing")
def test_a_checked_call_with_a_rule_of_its_own_waits_once(spec, monkeypatch):
    devices = []
    monkeypatch.setattr("vecrope.rope_index.on_device", lambda got, at: devices.append(at) or got)

    @at_most(5)
    @given(conversations(spec))
    def check(prompt):
        copies, devices[:] = [], []
        if prompt.attention_mask is None:
            prompt = replace(prompt, attention_mask=torch.ones_like(prompt.input_ids))
        arguments = {
            name: on("cuda:0", value, copies) if isinstance(value, torch.Tensor) else value
            for name, value in prompt.arguments().items()
        }
        assert_same(get_rope_index(spec=spec, **arguments), prompt.expected())
        assert devices == [torch.device("cuda:0")]
        assert sum(not non_blocking for _, _, non_blocking in copies) == 1

    check()


class Answer:
    def to(self, device, *, non_blocking):
        return str(device), non_blocking


@pytest.mark.parametrize(("device", "goes_on"), [("cuda:1", True), ("xpu:0", True), ("mps", False)])
def test_an_answer_is_copied_without_a_wait_where_that_is_safe(device, goes_on):
    got = on_device((Answer(), Answer()), torch.device(device))
    assert got == ((device, goes_on),) * 2


@pytest.mark.gpu
@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_on_a_gpu_it_waits_once_for_tensors_of_any_strides():
    ids = torch.arange(24, device="cuda").view(4, 6)
    inputs = Inputs(ids.t()[:, :3], image_grid_thw=ids[:, ::2], audio_seqlens=ids[:0, 0])
    got, number = count_waits(lambda: on_cpu(inputs))
    assert number == 1
    assert got.input_ids.tolist() == inputs.input_ids.tolist()
    assert got.image_grid_thw.tolist() == inputs.image_grid_thw.tolist()
    (back, _), number = count_waits(lambda: on_device((got.input_ids, got.input_ids), ids.device))
    assert number == 0
    assert torch.equal(back, inputs.input_ids)
