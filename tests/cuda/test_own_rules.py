"""On a CUDA device: an own rule's answers and plans, checked on the host and unchecked there."""

import pytest
import torch
from own_support import SPECS
from support import assert_same, count_waits

from tests.cuda.calls import on_cuda
from tests.plans.cases import tensors_of
from vecrope import get_rope_index, plan_rope_index
from vecrope.testing import Prompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def prompt_of(name):
    run = 8 if "hunyuan" in name else 6
    grid = [1, 2, 3] if "glm" in name else [1, 4, 6]
    return Prompt.from_symbols(SPECS[name], [f"tt<{'I' * run}>tt"], image_grid_thw=[grid])


@pytest.mark.parametrize("validate", [True, False], ids=["host", "device"])
@pytest.mark.parametrize("name", ["glm_image, sglang", "isaac", "bailing", "hunyuan_vl of 4 axes"])
def test_the_answer_is_that_of_the_cpu(name, validate):
    prompt = prompt_of(name)
    expected = get_rope_index(spec=prompt.spec, **prompt.arguments())
    answer = get_rope_index(spec=prompt.spec, validate=validate, **on_cuda(prompt.arguments()))
    assert all(tensor.is_cuda for tensor in answer)
    assert_same([tensor.cpu() for tensor in answer], expected)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("name", ["glm_image, sglang", "isaac", "bailing", "hunyuan_vl of 4 axes"])
def test_a_checked_plan_is_that_of_the_cpu(name):
    prompt = prompt_of(name)
    expected = plan_rope_index(spec=prompt.spec, **prompt.arguments())
    arguments = on_cuda(prompt.arguments())
    plan, number = count_waits(lambda: plan_rope_index(spec=prompt.spec, **arguments))
    assert number == 1
    assert plan.device.type == "cuda"
    assert_same([leaf.cpu() for leaf in tensors_of(plan)], tensors_of(expected))
    assert_same([plan.position_ids().cpu()], [expected.position_ids()])
