"""The plan that is made of groups on the host."""

import pytest
import torch
from support import rope_index
from torch.utils._python_dispatch import TorchDispatchMode

from tests.plans.cases import (
    GLM_IMAGE,
    PACED,
    QWEN,
    example,
    integers,
)
from vecrope import (
    concatenate_plans,
    plan_rope_index,
)
from vecrope.testing import Prompt


class Recorded(TorchDispatchMode):
    """Record the names of the operators that are dispatched."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        self.names.add(function.overloadpacket._qualified_op_name.removeprefix("aten::"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("spec", [QWEN, PACED, GLM_IMAGE], ids=["frames", "seconds", "lines"])
def test_no_small_plan_starts_threads(spec):
    """As these two do on a CPU, whatever the size of their input."""
    ids = integers([[5, 6, 7, 16384, 7], [5, 16384, 7, 7, 7]])
    mask = integers([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    of_lines = plan_rope_index(ids, GLM_IMAGE, image_grid_thw=integers([[1, 2, 3], [1, 1, 2]]))
    with Recorded() as recorded:
        plan = of_lines
        if spec is not GLM_IMAGE:
            plan = example(spec)
            example(spec, attention_mask=mask, rows=("tIItt", "IItVV"))
        joined = concatenate_plans([plan, plan])
        joined.position_ids(text_positions=True)
        plan.position_ids(text_positions=True)
        plan.shard(0, 2, text_positions=True, pad_to_multiple_of=2)
        joined.step([3, 0, 1, 9], [4, 2, 0, 1])
        plan.slice(1, 9)
        plan.decode(4)
    assert not recorded.names & {"searchsorted", "repeat_interleave"}


@pytest.mark.parametrize(
    ("spec", "seconds", "each"),
    [
        (QWEN, None, 28),
        (PACED, [0.5], 36),
        (PACED, integers([0.5], dtype=torch.float64), 44),
    ],
    ids=["frames", "seconds of 32 bits", "seconds of 64 bits"],
)
def test_bytes(spec, seconds, each):
    prompt = Prompt.from_symbols(
        spec, ["tVVtt", "ttttt"], video_grid_thw=[[2, 2, 2]], second_per_grid_ts=seconds
    )
    plan = rope_index(prompt, plan_rope_index)
    entries = plan.entries.shape[0]
    assert entries == 3  # the bounds of two rows, and a video
    assert plan.nbytes == each * entries + 40 * len(plan)
    assert rope_index(prompt, plan_rope_index, max_groups=50).nbytes > 50 * each
