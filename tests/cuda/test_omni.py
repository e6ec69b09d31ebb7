"""On a CUDA device without Triton the host follows omni prompts, and the answer is the same."""

import pytest
import torch
from hypothesis import given
from omni_support import each_omni, rope_index, spec_of
from support import assert_same

from tests.cuda.calls import few_examples
from tests.own_rules.omni.test_gpu import on_gpu
from vecrope.forms import select
from vecrope.own_rules.omni import rope_index as dispatch
from vecrope.testing import conversations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@each_omni
def test_without_triton_the_answer_is_that_of_the_cpu(model_type, convention, monkeypatch):
    monkeypatch.setattr(select, "HAS_TRITON", False)
    monkeypatch.setattr(dispatch, "static_rope_index", None)  # is not to be called

    @few_examples
    @given(conversations(spec_of(model_type, convention, 13), zeros=True))
    def check(prompt):
        expected = rope_index(prompt)
        assert_same(rope_index(on_gpu(prompt), validate=False), expected)
        assert_same(rope_index(on_gpu(prompt)), expected)

    check()
