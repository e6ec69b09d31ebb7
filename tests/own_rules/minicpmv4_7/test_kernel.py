"""MiniCPM-V 4.7 as on a device with Triton: the program is run by its interpreter."""

import pytest
import torch
from hypothesis import given
from support import assert_same
from torch._dynamo.testing import CompileCounterWithBackend

from tests.own_rules.minicpmv4_7.batches import SPECS, arguments_of, batches, each_spec
from vecrope import get_rope_index
from vecrope.own_rules import dispatch
from vecrope.testing import conversations

pytest.importorskip("triton", reason="needs Triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the program runs on the GPU here, see test_cuda.py"
)


@pytest.fixture(autouse=True)
def _as_on_gpu(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_takes", lambda _: True)
    torch._dynamo.reset()


def unchecked(prompt, *, by_types, **changes):
    arguments = {**arguments_of(prompt, by_types=by_types), **changes}
    return get_rope_index(spec=prompt.spec, validate=False, **arguments)


@each_spec
@pytest.mark.parametrize("by_types", [False, True], ids=["ids", "types"])
def test_the_answer_is_the_references(spec, by_types):
    @given(conversations(spec))
    def check(prompt):
        assert_same(unchecked(prompt, by_types=by_types), prompt.expected(by_types=by_types))

    check()


@each_spec
def test_packed_prompts_are_answered_as_padded_ones(spec):
    @given(conversations(spec, masks=False))
    def check(prompt):
        batch_size, seq_len = prompt.input_ids.shape
        expected = prompt.expected()
        # An empty sequence at each end.
        bounds = torch.arange(-1, batch_size + 2).clamp(0, batch_size) * seq_len
        flat = {"input_ids": prompt.input_ids.flatten(), "cu_seqlens": bounds}
        position_ids, rope_deltas = unchecked(prompt, by_types=False, **flat)
        assert torch.equal(position_ids, expected[0].flatten(1))
        assert rope_deltas.tolist() == [[0], *expected[1].tolist(), [0]]

    check()


def test_one_graph_answers_prompts_of_many_shapes():
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(unchecked, backend=counter, fullgraph=True, dynamic=True)
    for prompt in batches(SPECS["transformers"]):
        answer = compiled(prompt, by_types=False)
        assert_same(answer, prompt.expected())
    assert counter.frame_count == 1
