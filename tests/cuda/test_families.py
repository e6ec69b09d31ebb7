"""On a CUDA device: the kernels answer for every family that shares the rule."""

import pytest
import torch
from hypothesis import given, settings
from oracles import each_rule
from support import assert_same, fitting, misfitting, no_synchronisation, refusal

from tests.cuda.calls import moved, packed
from vecrope import get_rope_index
from vecrope.forms.select import fused_pipeline
from vecrope.inputs import Inputs
from vecrope.testing import Refusal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]
some_examples = settings(max_examples=3 * settings.default.max_examples, deadline=None)


def faulty(spec, arguments):
    buffers = fused_pipeline().launch(Inputs(**arguments), spec, validate=True)
    return bool(buffers.faults.any())


@each_rule
@pytest.mark.parametrize("by_types", [False, True], ids=["ids", "types"])
def test_the_loop_is_equalled_or_both_refuse(by_types, spec):
    @some_examples
    @given(fitting(spec) | misfitting(spec))
    def check(prompt):
        changes = {} if by_types else {"mm_token_type_ids": None}
        arguments = moved(prompt.arguments() | changes)
        try:
            expected = prompt.expected()
        except Refusal:
            assert by_types or refusal(prompt, **arguments) is not None
            return
        assert not faulty(spec, arguments)
        assert_same(get_rope_index(spec=spec, form="kernels", **arguments), expected)
        flat = moved(packed(prompt) | changes)
        position_ids, rope_deltas = get_rope_index(spec=spec, form="kernels", **flat)
        assert_same((position_ids.view_as(expected[0]), rope_deltas[:-1]), expected)
        assert rope_deltas[-1].item() == 0

    check()


@each_rule
def test_errors_are_those_of_the_cpu(spec):
    @settings(max_examples=settings.default.max_examples, deadline=None)
    @given(misfitting(spec))
    def check(prompt):
        arguments = moved(prompt.arguments() | {"mm_token_type_ids": None})
        assert refusal(prompt, **arguments) == refusal(prompt)

    check()


@each_rule
def test_nothing_waits(spec):
    @settings(max_examples=5, deadline=None)
    @given(fitting(spec))
    def check(prompt):
        seconds = prompt.second_per_grid_ts
        if seconds is not None:
            seconds = torch.as_tensor(seconds)
        for arguments in (prompt.arguments(), packed(prompt)):
            given_ = moved(arguments | {"second_per_grid_ts": seconds})
            given_ = {name: value for name, value in given_.items() if value is not None}
            get_rope_index(spec=spec, validate=False, **given_)
            with no_synchronisation():
                get_rope_index(spec=spec, validate=False, **given_)

    check()
