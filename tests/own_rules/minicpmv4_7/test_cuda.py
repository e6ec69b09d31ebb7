"""MiniCPM-V 4.7 on a CUDA device: the host answers, also in a compiled graph."""

import pytest
import torch
from hypothesis import given, settings
from support import assert_same

from tests.own_rules.minicpmv4_7.batches import SPECS, batches, each_spec
from vecrope import get_rope_index
from vecrope.testing import Prompt, conversations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_cuda(prompt, *, by_types=False):
    arguments = prompt.arguments()
    if not by_types:
        arguments["mm_token_type_ids"] = None
    return {name: None if value is None else value.cuda() for name, value in arguments.items()}


@each_spec
@pytest.mark.parametrize("by_types", [False, True], ids=["ids", "types"])
def test_the_answer_is_the_references(spec, by_types):
    @settings(max_examples=25, deadline=None)
    @given(conversations(spec))
    def check(prompt):
        arguments = on_cuda(prompt, by_types=by_types)
        expected = prompt.expected(by_types=by_types)
        for validate in (True, False):
            assert_same(get_rope_index(spec=spec, validate=validate, **arguments), expected)

    check()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings are not ours
def test_a_compiled_call_keeps_every_rounding():
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
