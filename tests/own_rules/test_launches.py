"""How many operators that launch a kernel an unchecked call of a family's own rule takes."""

import pytest
import torch
from own_support import SPECS
from torch.utils._python_dispatch import TorchDispatchMode

from vecrope import get_decode_position_ids, get_rope_index
from vecrope.testing import Prompt

# What launches nothing: views, and memory that is not written.
_FREE = {
    *("_unsafe_view", "alias", "as_strided", "detach", "expand", "permute", "select", "slice"),
    *("split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"),
    *("empty", "empty_like", "empty_strided", "lift_fresh", "new_empty", "new_empty_strided"),
}
# On a GPU some of these take several kernels, and on a CPU a search takes an operator more.
CEILINGS = {"glm_image, transformers": 84, "glm_image, sglang": 76, "isaac": 77, "bailing": 69}
CEILINGS |= {"bailing with timestamps": 72, "hunyuan_vl of 4 axes": 72}
CEILING_OF_GENERATED = 99


class Launches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        self.number += function.overloadpacket.__name__ not in _FREE
        return function(*args, **(kwargs or {}))


def prompt_of(name):
    run = 8 if "hunyuan" in name else 6
    grids = [[1, 2, 3]] if "glm" in name else [[1, 4, 6]]
    rows = [f"tt<{'I' * run}>tt", f"ttt<{'I' * run}>t"]
    mask = ["1" * len(rows[0])] * 2
    return Prompt.from_symbols(SPECS[name], rows, mask=mask, image_grid_thw=grids * 2)


@pytest.mark.parametrize("name", CEILINGS)
def test_an_unchecked_call_launches_no_more(name):
    prompt = prompt_of(name)
    with Launches() as launches:
        get_rope_index(spec=prompt.spec, validate=False, **prompt.arguments())
    assert launches.number <= CEILINGS[name]


@pytest.mark.parametrize("convention", ["transformers", "sglang"])
def test_the_positions_of_generated_images_launch_no_more(convention):
    prompt = prompt_of(f"glm_image, {convention}")
    arguments = {name: prompt.arguments()[name] for name in ("attention_mask", "image_grid_thw")}
    ids, options = prompt.input_ids, {"validate": False, "max_decode_tokens": 20}
    with Launches() as launches:
        get_decode_position_ids(ids, prompt.spec, **arguments, **options)
    assert launches.number <= CEILING_OF_GENERATED


def test_views_are_not_counted():
    with Launches() as launches:
        torch.ones(4).view(2, 2)[0].add(1)
    assert launches.number == 2
