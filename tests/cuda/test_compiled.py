"""On a CUDA device: a compiled call launches the kernels, which the compiler takes apart."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from oracles import each_rule, spec_of
from support import assert_no_answer, assert_same, fitting, no_synchronisation, roomy
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from tests.cuda.calls import a_prompt, few_examples, moved, packed
from vecrope import get_rope_index
from vecrope.forms.triton import operator
from vecrope.inputs import Inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # the compiler's own warnings are not ours
]
LAYOUTS = ["padded", "packed"]
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    # Sizes that are equal by chance when they are first seen would be taken for always equal.
    with torch.fx.experimental._config.patch(use_duck_shape=False):
        yield
    torch._dynamo.reset()


def compiled_arguments(prompt, layout):
    """Return a prompt's arguments on the device, in which everything changeable is a tensor."""
    seconds = prompt.second_per_grid_ts
    arguments = packed(prompt) if layout == "packed" else prompt.arguments()
    arguments["second_per_grid_ts"] = None if seconds is None else torch.as_tensor(seconds)
    del arguments["mm_token_type_ids"]
    return moved(arguments)


@each_rule
@each_layout
@pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])
def test_a_compiled_call_equals_the_loop(validate, layout, spec):
    counter, kinds = CompileCounterWithBackend("inductor"), set()
    function = torch.compile(get_rope_index, fullgraph=True, dynamic=True, backend=counter)

    def answer(prompt):
        given_ = compiled_arguments(prompt, layout)
        kinds.add(tuple((name, getattr(value, "dtype", None)) for name, value in given_.items()))
        copies = {name: value.clone() for name, value in given_.items() if torch.is_tensor(value)}
        position_ids, rope_deltas = function(spec=spec, validate=validate, **given_)
        for name, copy in copies.items():
            assert torch.equal(given_[name], copy)
        if layout == "padded":
            return position_ids, rope_deltas
        return position_ids.view(3, *prompt.input_ids.shape), rope_deltas[:-1]

    @few_examples
    @given(fitting(spec))
    def check(prompt):
        prompt = roomy(prompt)
        assert_same(answer(prompt), prompt.expected())

    check()
    assert counter.frame_count == len(kinds)


@each_layout
def test_a_mask_may_be_bool(layout):
    spec = spec_of("glm4v", "transformers")
    prompt = a_prompt(spec)
    function = torch.compile(get_rope_index, fullgraph=True, dynamic=True)
    arguments = compiled_arguments(prompt, layout)
    arguments["attention_mask"] = arguments["attention_mask"].bool()
    position_ids, rope_deltas = function(spec=spec, **arguments)
    expected = prompt.expected()
    answer = position_ids.view_as(expected[0]), rope_deltas[: len(prompt.input_ids)]
    assert_same(answer, expected)


@each_layout
def test_a_misfit_has_no_answer(layout):
    spec = spec_of("glm4v", "transformers")
    prompt = a_prompt(spec)
    function = torch.compile(get_rope_index, fullgraph=True, dynamic=True)
    function(spec=spec, **compiled_arguments(prompt, layout))
    misfit = replace(prompt, input_ids=prompt.input_ids.flip(0))
    assert_no_answer(function(spec=spec, **compiled_arguments(misfit, layout)))


@each_layout
@pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])
def test_a_compiled_call_is_captured_and_nothing_waits(validate, layout):
    spec = spec_of("glm4v", "transformers")
    prompt = a_prompt(spec)
    given_ = compiled_arguments(prompt, layout)
    expected = get_rope_index(spec=spec, **given_)
    function = torch.compile(get_rope_index, fullgraph=True, mode="reduce-overhead")

    def answer():
        torch.compiler.cudagraph_mark_step_begin()
        return function(spec=spec, validate=validate, **given_)

    counters.clear()
    for _ in range(4):
        assert_same([values.clone() for values in answer()], expected)
    with no_synchronisation():
        answer()
    assert not counters["inductor"]["cudagraph_skips"]


def test_torch_finds_nothing_wrong_with_the_operator(monkeypatch):
    calls = []
    real = torch.ops.vecrope.rope_index
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.vecrope, "rope_index", lambda *a: calls.append(a) or real(*a))
        spec = spec_of("glm4v", "transformers")
        padded, flat = (compiled_arguments(a_prompt(spec), layout) for layout in LAYOUTS)
        operator.traced_rope_index(Inputs(**padded), spec, validate=True)
        operator.traced_rope_index(Inputs(**flat), spec, validate=False)
    for call in calls:
        torch.library.opcheck(real.default, call)
