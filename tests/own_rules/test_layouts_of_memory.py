"""Answers do not depend on torch's default device, nor on how the ids lie in memory."""

import pytest
import torch
from hypothesis import given
from omni_support import spec_of
from own_support import SPECS, minicpm_spec
from support import assert_same, at_most
from torch.nn.functional import pad

from vecrope import get_rope_index, plan_rope_index
from vecrope.testing import conversations

OMNI = {family: spec_of(family, "transformers") for family in ("qwen2_5_omni", "qwen3_omni_moe")}
ALL = SPECS | OMNI | {"minicpmv4_7": minicpm_spec("transformers")}
each_spec = pytest.mark.parametrize("spec", ALL.values(), ids=ALL)


@each_spec
def test_nothing_depends_on_the_default_device(spec):
    @at_most(5)
    @given(conversations(spec))
    def check(prompt):
        arguments = {"spec": spec, **prompt.arguments()}
        with torch.device("meta"):
            answer = get_rope_index(**arguments)
            planned = plan_rope_index(**arguments).position_ids()
        expected = prompt.expected()
        assert {tensor.device.type for tensor in (*answer, planned)} == {"cpu"}
        assert_same(answer, expected)
        assert torch.equal(planned, expected[0])

    check()


@each_spec
def test_rows_may_be_a_slice_of_longer_ones(spec):
    @at_most(5)
    @given(conversations(spec))
    def check(prompt):
        ids = prompt.input_ids
        arguments = {**prompt.arguments(), "input_ids": pad(ids, (0, 3))[:, : ids.shape[1]]}
        assert_same(get_rope_index(spec=spec, **arguments), prompt.expected())

    check()
