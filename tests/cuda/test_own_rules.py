"""On a CUDA device: a checked call of an own rule, answered on the host and on the device."""

import pytest
import torch
from own_support import SPECS
from support import assert_same

from tests.cuda.calls import on_cuda
from vecrope import get_rope_index
from vecrope.own_rules import dispatch
from vecrope.testing import Prompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def prompt_of(name):
    run = 8 if "hunyuan" in name else 6
    grid = [1, 2, 3] if "glm" in name else [1, 4, 6]
    return Prompt.from_symbols(SPECS[name], [f"tt<{'I' * run}>tt"], image_grid_thw=[grid])


@pytest.mark.parametrize("most", [0, 8192], ids=["device", "host"])
@pytest.mark.parametrize("name", ["glm_image, sglang", "isaac", "bailing", "hunyuan_vl of 4 axes"])
def test_the_answer_is_that_of_the_cpu(name, most, monkeypatch):
    monkeypatch.setattr(dispatch, "_MOST_ON_HOST", most)
    prompt = prompt_of(name)
    expected = get_rope_index(spec=prompt.spec, **prompt.arguments())
    answer = get_rope_index(spec=prompt.spec, **on_cuda(prompt.arguments()))
    assert all(tensor.is_cuda for tensor in answer)
    assert_same([tensor.cpu() for tensor in answer], expected)
