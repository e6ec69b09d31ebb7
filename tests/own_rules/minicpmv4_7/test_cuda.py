"""MiniCPM-V 4.7 on a CUDA device: no synchronisation, graphs, and compiled roundings."""

import pytest
import torch
from hypothesis import given, settings
from support import assert_same, no_synchronisation

from tests.own_rules.minicpmv4_7.batches import SPECS, batches, each_spec
from vecrope import get_rope_index
from vecrope.testing import Prompt, conversations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


def on_cuda(prompt, *, by_types=False):
    arguments = prompt.arguments()
    if not by_types:
        arguments["mm_token_type_ids"] = None
    return {name: None if value is None else value.cuda() for name, value in arguments.items()}


@each_spec
@pytest.mark.parametrize("by_types", [False, True], ids=["ids", "types"])
def test_the_answer_is_the_references_and_nothing_synchronises(spec, by_types):
    @settings(max_examples=25, deadline=None)
    @given(conversations(spec))
    def check(prompt):
        arguments = on_cuda(prompt, by_types=by_types)
        expected = prompt.expected(by_types=by_types)
        assert_same(get_rope_index(spec=spec, **arguments), expected)
        with no_synchronisation():
            answer = get_rope_index(spec=spec, validate=False, **arguments)
        assert_same(answer, expected)

    check()


@each_spec
def test_a_graph_answers_other_prompts_of_its_shapes(spec):
    prompt, *_ = batches(spec)
    arguments = on_cuda(prompt)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        get_rope_index(spec=spec, validate=False, **arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = get_rope_index(spec=spec, validate=False, **arguments)
    for order in ([0, 1, 2], [2, 0, 1]):
        other = Prompt.from_symbols(
            spec,
            [prompt.symbols[row] for row in order],
            mask=["".join(map(str, prompt.attention_mask[row].tolist())) for row in order],
            target_sizes=prompt.target_sizes.tolist(),
            target_sizes_videos=prompt.target_sizes_videos.tolist(),
        )
        for name, value in on_cuda(other).items():
            if value is not None:
                arguments[name].copy_(value)
        graph.replay()
        assert_same(answer, other.expected())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings are not ours
def test_compiled_kernels_keep_every_rounding():
    spec = SPECS["transformers"]
    compiled = torch.compile(get_rope_index, fullgraph=True, dynamic=True)
    row = f"t({'I' * 43})<{'I' * 4}>t"
    tie = Prompt.from_symbols(
        spec,
        [row] * 3,
        mask=["1" * len(row)] * 3,
        target_sizes=[[4, 172], [4, 16]] * 3,
        target_sizes_videos=[[0, 0]] * 4,
    )
    for prompt in (*batches(spec), tie):
        answer = compiled(spec=spec, validate=False, **on_cuda(prompt))
        assert_same(answer, prompt.expected())
