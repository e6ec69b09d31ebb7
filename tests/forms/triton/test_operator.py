"""The kernels as an operator of torch: what it is given, its shapes, and how often it compiles."""

import random
from dataclasses import replace

import pytest
import torch
from oracles import RULES, spec_of
from support import assert_no_answer, assert_same, rope_index
from torch._dynamo.testing import CompileCounterWithBackend

from tests.forms.triton.interpreted import interpreted
from tests.forms.triton.operands import OPERATOR, operands_of
from vecrope import get_rope_index
from vecrope.forms.triton import launch as fused
from vecrope.forms.triton import operator
from vecrope.inputs import Inputs
from vecrope.testing import Prompt

QWEN = spec_of("qwen2_5_vl", "transformers")
PROMPT = Prompt.from_symbols(
    QWEN,
    ["t<II>t<VVVV>", "t<II>ttttttt"],
    mask=["1" * 12, "0" + "1" * 11],
    image_grid_thw=[[1, 2, 4], [1, 4, 2]],
    video_grid_thw=[[4, 2, 2]],
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    interpreted(monkeypatch)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("spec", RULES, ids=lambda spec: f"{spec.model_type}-{spec.convention}")
def test_the_operator_is_told_all_of_a_spec(spec, monkeypatch):
    seen = []

    def launch(inputs, spec, **_):
        seen.append(spec)
        return fused.make_buffers(tuple(inputs.input_ids.shape), 1, 0, torch.int64, inputs[0])

    monkeypatch.setattr(fused, "launch", launch)
    operator.traced_rope_index(Inputs(torch.tensor([[5, 6]])), spec, validate=False)
    assert seen == [replace(spec, model_type="")]


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings are not ours
@pytest.mark.parametrize(
    "seconds", [None, [0.3], torch.tensor([0.3])], ids=["none", "list", "tensor"]
)
def test_a_compiled_call_is_one_operator(seconds):
    graphs = []

    def backend(graph, _):
        graphs.append(
            [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        )
        return graph

    function = torch.compile(get_rope_index, fullgraph=True, dynamic=True, backend=backend)
    changes = {"second_per_grid_ts": seconds}
    assert_same(rope_index(PROMPT, function, **changes), rope_index(PROMPT, **changes))
    assert [name for name in graphs[0] if "vecrope" in name] == ["vecrope.rope_index"]
    ids = PROMPT.input_ids.clone()
    ids[0, 2] = 7
    assert_no_answer(rope_index(PROMPT, function, input_ids=ids, **changes))
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore")
def test_torch_finds_nothing_wrong_with_the_operator(monkeypatch):
    flat = {"input_ids": PROMPT.input_ids.view(-1), "cu_seqlens": torch.tensor([0, 12, 24])}
    padded = {**PROMPT.arguments(), "mm_token_type_ids": None}
    packed = {**padded, **flat, "attention_mask": None}
    packed["input_ids"] = packed["input_ids"].int()
    vllm = spec_of("qwen2_5_vl", "vllm")
    calls = [
        operands_of(monkeypatch, padded, QWEN, validate=True),
        operands_of(monkeypatch, packed, vllm, validate=False),
    ]
    # To take it apart, which opcheck does besides, needs kernels that are not interpreted.
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    for call in calls:
        torch.library.opcheck(OPERATOR.default, call, test_utils=checks)


@pytest.mark.filterwarnings("ignore")
def test_no_request_compiles_what_has_been_seen(monkeypatch):
    def launch(inputs, _spec, **_):
        ids = inputs.input_ids
        return fused.make_buffers(tuple(ids.shape), len(ids), 0, ids.dtype, ids)

    monkeypatch.setattr(fused, "launch", launch)
    counter = CompileCounterWithBackend("eager")
    function = torch.compile(get_rope_index, fullgraph=True, dynamic=True, backend=counter)
    # Sizes that are equal by chance when they are first seen would be taken for always equal.
    duck = torch.fx.experimental._config.patch
    rng = random.Random(0)
    seen = set()

    def some(number):
        return None if number < 0 else torch.ones((number, 3), dtype=torch.int64)

    for _ in range(500):
        rows, tokens, images = rng.randint(1, 3), rng.randint(2, 99), rng.randint(-1, 3)
        ids = torch.ones((rows, tokens), dtype=torch.int64)
        mask = torch.ones_like(ids) if rng.random() < 0.5 else None
        # One of each of none or given, and of sizes 0, 1 and more.
        seen.add((min(rows, 2), min(images, 2), mask is None))
        with torch._dynamo.config.patch(recompile_limit=64), duck(use_duck_shape=False):
            function(ids, QWEN, image_grid_thw=some(images), attention_mask=mask, validate=False)
        assert counter.frame_count <= len(seen)
