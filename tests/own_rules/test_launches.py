"""How many operators that launch a kernel an unchecked call of a family's own rule takes."""

import pytest
import torch
from own_support import SPECS
from torch.utils._python_dispatch import TorchDispatchMode

from tests.own_rules.minicpmv4_7.batches import SPECS as MINICPM
from tests.own_rules.minicpmv4_7.batches import batches
from vecrope import get_rope_index
from vecrope.testing import Prompt

# What launches nothing: views, and memory that is not written.
_FREE = {
    *("_unsafe_view", "alias", "as_strided", "detach", "expand", "permute", "select", "slice"),
    *("split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"),
    *("empty", "empty_like", "empty_strided", "lift_fresh", "new_empty", "new_empty_strided"),
}
# On a GPU some of these take several kernels, and on a CPU a search takes an operator more.
CEILINGS = {"glm_image, transformers": 84, "glm_image, sglang": 81, "isaac": 77, "bailing": 69}
CEILINGS |= {"bailing with timestamps": 72, "hunyuan_vl of 4 axes": 72}
CEILINGS |= {"minicpmv4_7, transformers": 71, "minicpmv4_7, sglang": 56, "minicpmv4_7, vllm": 71}
# By markers, without types.
CEILINGS |= {"minicpmv4_7, sglang, ids": 79, "minicpmv4_7, vllm, ids": 93}


class Launches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        self.number += function.overloadpacket.__name__ not in _FREE
        return function(*args, **(kwargs or {}))


def prompt_of(name):
    if name.startswith("minicpmv4_7"):
        return next(iter(batches(MINICPM[name.split(", ")[1]])))
    run = 8 if "hunyuan" in name else 6
    grids = [[1, 2, 3]] if "glm" in name else [[1, 4, 6]]
    rows = [f"tt<{'I' * run}>tt", f"ttt<{'I' * run}>t"]
    mask = ["1" * len(rows[0])] * 2
    return Prompt.from_symbols(SPECS[name], rows, mask=mask, image_grid_thw=grids * 2)


@pytest.mark.parametrize("name", CEILINGS)
def test_an_unchecked_call_launches_no_more(name, monkeypatch):
    if name.startswith("minicpmv4_7"):
        pytest.importorskip("triton", minversion="3.7", reason="needs Triton's interpreter of 3.7")
        monkeypatch.setattr("vecrope.own_rules.dispatch.triton_takes", lambda _: True)
    prompt = prompt_of(name)
    arguments = prompt.arguments()
    if name.endswith("ids"):
        arguments["mm_token_type_ids"] = None
    with Launches() as launches:
        get_rope_index(spec=prompt.spec, validate=False, **arguments)
    assert launches.number <= CEILINGS[name]


def test_views_are_not_counted():
    with Launches() as launches:
        torch.ones(4).view(2, 2)[0].add(1)
    assert launches.number == 2
