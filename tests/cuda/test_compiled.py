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
from tests.forms.triton.operands import OPERATOR, operands_of
from vecrope import get_rope_index

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


def in_rows(prompt, position_ids, rope_deltas):
    """Return an answer by the prompt's rows, without the empty sequence behind packed ones."""
    batch, seq_len = prompt.input_ids.shape
    return position_ids.view(3, batch, seq_len), rope_deltas[:batch]


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
        return in_rows(prompt, position_ids, rope_deltas)

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
    assert_same(in_rows(prompt, *function(spec=spec, **arguments)), prompt.expected())


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


@pytest.mark.parametrize(("layout", "validate"), [("padded", True), ("packed", False)])
def test_torch_finds_nothing_wrong_with_the_operator(layout, validate, monkeypatch):
    spec = spec_of("glm4v", "transformers")
    arguments = compiled_arguments(a_prompt(spec), layout)
    operands = operands_of(monkeypatch, arguments, spec, validate=validate)
    torch.library.opcheck(OPERATOR.default, operands)
