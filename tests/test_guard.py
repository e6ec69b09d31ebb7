"""What speed depends on and no clock disturbs: operators, temporaries and memory of a call.

The ceilings are the present values. Lower them with the code; to raise one takes a reason.
"""

from collections import Counter

import pytest
import torch
from support import spec_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.answers import prepare_vecrope
from bench.config import Config
from bench.providers import (
    vecrope_concatenate_provider,
    vecrope_placeholders_provider,
    vecrope_plan_provider,
    vecrope_provider,
    vecrope_replace_provider,
    vecrope_unchecked_provider,
)
from bench.runner import measure_memory
from bench.workloads import make_workload
from vecrope import get_rope_index, plan_rope_index

SPEC = spec_of("glm4v", "sglang")

# Workload and T, operators, and tensors of a number a token that are allocated on the way.
CEILINGS = [
    ("seed", 512, 7, 3),
    ("short", 300, 9, 3),
    ("seed", 1024, 9, 3),
    ("video", 4096, 9, 3),
    ("seed", 16384, 9, 3),
    ("seed", 131072, 9, 3),
    ("video", 131072, 9, 3),
    ("batch", 4096, 20, 5),
]

# The same of other families, from their ids and from the places of their placeholders.
FAMILY_CEILINGS = [
    (vecrope_provider, "qwen2_5_vl", 1024, 9, 3),
    (vecrope_provider, "qwen2_5_vl", 16384, 9, 3),
    (vecrope_provider, "qwen3_vl", 1024, 9, 3),
    (vecrope_provider, "qwen3_vl", 16384, 9, 3),
    (vecrope_provider, "ernie4_5_vl_moe", 1024, 9, 3),
    (vecrope_provider, "ernie4_5_vl_moe", 16384, 9, 3),
    (vecrope_placeholders_provider, "seed", 512, 5, 1),
    (vecrope_placeholders_provider, "seed", 131072, 5, 1),
    (vecrope_placeholders_provider, "video", 131072, 5, 1),
    (vecrope_placeholders_provider, "qwen2_5_vl", 16384, 5, 1),
    (vecrope_placeholders_provider, "qwen3_vl", 16384, 5, 1),
    (vecrope_placeholders_provider, "ernie4_5_vl_moe", 16384, 5, 1),
    (vecrope_placeholders_provider, "short", 300, 5, 1),
    (vecrope_plan_provider, "seed", 131072, 23, 1),
    (vecrope_plan_provider, "video", 131072, 23, 1),
]
# What any layout takes, however long it is and whatever its pictures: pictures and clips of which
# no two sides are equal.
MIXED_CEILINGS = {
    "mixed": {400: 9, 1000: 9, 4000: 9, 16384: 9, 131072: 9},
    "mixed-batch": {1000: 20, 4000: 20},
    "mixed-packed": {1000: 11, 4000: 11},
    "mixed-touching": {2000: 9, 16384: 9},
}
FAMILIES = ("glm4v", "qwen2_5_vl", "qwen3_vl", "ernie4_5_vl_moe")
# Of a plan of these layouts; factors of seconds are 6 more.
PLAN_CEILINGS = {"mixed": 6, "mixed-batch": 12, "mixed-packed": 6, "mixed-touching": 6}
# Of a step of 256 requests. Each column of a plan is gathered by itself, which is 10 operators more
# and a fifth faster than to gather rows and compute with strided columns. A step of many tokens
# spreads entries over them, 57 operators of a few hundred numbers each in place of a search.
STEP_CEILINGS = [
    (vecrope_provider, "step", 115),
    (vecrope_unchecked_provider, "step-decode", 26),
    (vecrope_concatenate_provider, "step", 134),
    # To join plans takes three operators more than it did, of a number a plan each, in place of
    # calls for each of 256 plans.
    (vecrope_replace_provider, "step", 196),
]


def call(name, seq_len):
    workload = make_workload(name, seq_len)
    return lambda: get_rope_index(
        workload.input_ids,
        SPEC,
        image_grid_thw=workload.image_grid_thw,
        video_grid_thw=workload.video_grid_thw,
        attention_mask=workload.attention_mask,
    )


class Recorder(TorchDispatchMode):
    """Counts the operators that are dispatched, and which of them allocate `large` numbers."""

    def __init__(self, large):
        super().__init__()
        self.large = large
        self.operators = Counter()
        self.temporaries = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.operators[str(operator)] += 1
        given = {storage(leaf) for leaf in tree_leaves((args, kwargs)) if is_tensor(leaf)}
        for leaf in tree_leaves(result):
            if is_tensor(leaf) and leaf.numel() >= self.large and storage(leaf) not in given:
                self.temporaries[str(operator)] += 1
        return result


def is_tensor(leaf):
    return isinstance(leaf, torch.Tensor)


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize(("name", "seq_len", "operators", "temporaries"), CEILINGS)
def test_operators_and_temporaries(name, seq_len, operators, temporaries):
    recorder = record(call(name, seq_len), make_workload(name, seq_len).input_ids.numel())
    assert recorder.operators.total() <= operators, recorder.operators
    assert recorder.temporaries.total() <= temporaries, recorder.temporaries


@pytest.mark.parametrize(("make", "name", "seq_len", "operators", "temporaries"), FAMILY_CEILINGS)
def test_operators_and_temporaries_of_families(make, name, seq_len, operators, temporaries):
    recorder = record(make().prepare(make_workload(name, seq_len)), seq_len)
    assert recorder.operators.total() <= operators, recorder.operators
    assert recorder.temporaries.total() <= temporaries, recorder.temporaries


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", MIXED_CEILINGS)
def test_operators_of_mixed_layouts(name, family):
    for seq_len, most in MIXED_CEILINGS[name].items():
        workload = make_workload(f"{name}-{family}", seq_len)
        recorder = record(vecrope_provider().prepare(workload), seq_len)
        assert recorder.operators.total() <= most, recorder.operators


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PLAN_CEILINGS)
def test_operators_of_plans(name, family):
    for seq_len in MIXED_CEILINGS[name]:
        workload = make_workload(f"{name}-{family}", seq_len)
        make = prepare_vecrope(workload, workload.convention, plan_rope_index)
        ceiling = PLAN_CEILINGS[name] + 6 * (family == "qwen2_5_vl")
        assert record(make, seq_len).operators.total() <= ceiling


@pytest.mark.parametrize("model_type", ["glm4v", "qwen2_vl", "qwen2_5_vl", "ernie4_5_vl_moe"])
def test_a_prompt_of_text_takes_ten_operators(model_type):
    spec, ids = spec_of(model_type, "transformers"), torch.full((1, 300), 7)
    assert record(lambda: get_rope_index(ids, spec), 300).operators.total() <= 10


@pytest.mark.parametrize(("make", "name", "operators"), STEP_CEILINGS)
def test_operators_of_a_step(make, name, operators):
    workload = make_workload(name, 4096)
    recorder = record(make().prepare(workload), sum(workload.step.scheduled))
    assert recorder.operators.total() <= operators, recorder.operators


def record(function, large):
    function()  # constants of the spec are made once
    recorder = Recorder(large)
    with recorder:
        function()
    return recorder


def test_the_recorder_tells_views_and_writes_from_temporaries():
    ids = torch.arange(8)
    with Recorder(large=8) as recorder:
        ids.view(2, 4).add_(1)
        torch.add(ids, 1, out=ids)
        ids[:4] + 1
    assert recorder.operators.total() == 5
    assert not recorder.temporaries
    with recorder:
        ids + 1
    assert recorder.temporaries == {"aten.add.Tensor": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seq_len"),
    [
        *(("seed", 131072), ("video", 131072), ("batch", 4096)),
        *(("qwen2_5_vl", 131072), ("qwen3_vl", 131072), ("ernie4_5_vl_moe", 131072)),
    ],
)
def test_peak_memory_is_at_most_48_bytes_a_token(name, seq_len):
    config = Config(name, seq_len)
    peak = measure_memory(vecrope_provider().prepare(make_workload(name, seq_len)), config)
    num_tokens = make_workload(name, seq_len).input_ids.numel()
    # The answer alone takes 24.
    assert 24 * num_tokens <= peak <= 48 * num_tokens
