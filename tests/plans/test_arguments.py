"""What a plan's methods refuse, and in which words."""

import re

import pytest
import torch
from oracles import spec_of
from support import rope_index

from tests.plans.cases import (
    PLAN,
    QWEN,
    SPECS,
    integers,
    of_seconds,
)
from vecrope import (
    concatenate_plans,
    plan_rope_index,
)
from vecrope.testing import Prompt

OTHERS = {
    "device": PLAN.to("meta"),
    "dtype": rope_index(
        Prompt.from_symbols(QWEN, ["t"]),
        plan_rope_index,
        input_ids=integers([[7]], dtype=torch.int32),
    ),
    "family": plan_rope_index(integers([[7]]), SPECS["glm4v-sglang"]),
    "convention": plan_rope_index(integers([[7]]), spec_of("qwen2_vl", "vllm")),
}


NO_START = "start must be "
REFUSED = {
    "decoding from before the end": (
        lambda: PLAN.decode(start=-1),
        ValueError,
        re.escape(f"{NO_START}at least 0, got -1"),
    ),
    "decoding from where positions wrap": (
        lambda: PLAN.decode(start=2**63),
        ValueError,
        re.escape(f"{NO_START}less than 2**30, got {2**63}"),
    ),
    "one of the starts before the end": (
        lambda: PLAN.decode(start=integers([2, -3])),
        ValueError,
        r"start must be from 0 to 1073741823, got -3 at \[1\]",
    ),
    "one of the starts where positions wrap": (
        lambda: PLAN.decode(start=integers([2, 2**40])),
        ValueError,
        re.escape(f"{NO_START}from 0 to {2**30 - 1}, got {2**40} at [1]"),
    ),
    "a float of tokens to decode": (
        lambda: PLAN.decode(2.0),
        TypeError,
        r"num_tokens must be an int, got 2\.0",
    ),
    "no index": (
        lambda: PLAN.at(None),
        TypeError,
        "token_index must be a tensor, got NoneType",
    ),
    "a slice from nowhere": (
        lambda: PLAN.slice(None, 3),
        TypeError,
        "start must be an int, got None",
    ),
    "a slice that no memory holds": (
        lambda: PLAN.slice(1, 2**40),
        ValueError,
        re.escape(f"a slice must have fewer than 2**30 tokens, got start 1 and stop {2**40}"),
    ),
    "a step that no memory holds": (
        lambda: PLAN.step([2**40] * len(PLAN), [2**30] * len(PLAN)),
        ValueError,
        re.escape("num_scheduled_tokens must be fewer than 2**30 in all, got"),
    ),
    "a slice to a bool": (lambda: PLAN.slice(0, True), TypeError, "stop must be an int, got True"),
    "a number for all rows": (
        lambda: PLAN.step(3, 1),
        TypeError,
        "num_computed_tokens must be a list or a tensor of integers, got int",
    ),
    "a row to select that is not there": (
        lambda: PLAN.select([0, 2]),
        ValueError,
        "rows must be from 0 to 1, got 2",
    ),
    "rows to select in two axes": (
        lambda: PLAN.select(integers([[0]])),
        ValueError,
        r"rows must have shape \(n,\), got \(1, 1\)",
    ),
    "rows to select that are bools": (
        lambda: PLAN.select([True, False]),
        TypeError,
        "rows must be integers, got torch.bool",
    ),
    "a row replaced twice": (
        lambda: PLAN.replace([1, 1], PLAN),
        ValueError,
        r"rows must not hold a row twice, got \[1, 1\]",
    ),
    "as many rows as there are not": (
        lambda: PLAN.replace([1], PLAN),
        ValueError,
        r"rows must have shape \(2,\), a number for each row of other, got \(1,\)",
    ),
    "something else than plans": (
        lambda: concatenate_plans([PLAN, None]),
        TypeError,
        "plans must hold plans, got NoneType at 1",
    ),
    "one plan in place of a list": (
        lambda: concatenate_plans(PLAN),
        TypeError,
        r"plans must be a sequence of plans, got <GroupPlan of qwen2_vl .*; give \[plan\] for one",
    ),
    "shards of a plan by its sequences": (
        lambda: PLAN.shard(0, 2, "zigzag_sequences"),
        ValueError,
        "layout must be 'contiguous' or 'zigzag' for the shard of a plan, got 'zigzag_sequences'",
    ),
    "a slice from before its row": (
        lambda: PLAN.slice(-1, 2),
        ValueError,
        "a slice must have 0 <= start <= stop, got start -1 and stop 2",
    ),
    "a slice that goes back": (
        lambda: PLAN.slice(3, 2),
        ValueError,
        "a slice must have 0 <= start <= stop, got start 3 and stop 2",
    ),
    "a list of indices": (
        lambda: PLAN.at([[0], [1]]),
        TypeError,
        "token_index must be a tensor, got list",
    ),
    "a list of rows": (
        lambda: PLAN.at(integers([0]), [1]),
        TypeError,
        "rows must be a tensor, got list",
    ),
    "indices that are floats": (
        lambda: PLAN.at(integers([[0.0], [1.0]])),
        TypeError,
        "token_index must be integers, got torch.float32",
    ),
    "indices that are bools": (
        lambda: PLAN.at(integers([[True], [False]])),
        TypeError,
        "token_index must be integers, got torch.bool",
    ),
    "rows that are complex": (
        lambda: PLAN.at(integers([0]), integers([1j])),
        TypeError,
        "rows must be integers, got torch.complex64",
    ),
    "indices of other rows": (
        lambda: PLAN.at(integers([0, 1, 2])),
        ValueError,
        r"token_index must have shape \(2, ...\), a dimension for the rows first, got \(3,\); "
        "or give rows",
    ),
    "an index of no row": (
        lambda: PLAN.at(integers(0)),
        ValueError,
        r"token_index must have shape \(2, ...\), .* got \(\); or give rows",
    ),
    "a row too many": (
        lambda: PLAN.at(integers([0]), integers([2, 0])),
        ValueError,
        "rows must be from 0 to 1, got 2",
    ),
    "a negative row": (
        lambda: PLAN.at(integers([0]), integers([2, -1])),
        ValueError,
        "rows must be from 0 to 1, got -1",
    ),
    "a negative row among others that are there": (
        lambda: PLAN.at(integers([0]), integers([1, -1])),
        ValueError,
        "rows must be from 0 to 1, got -1",
    ),
    "a negative index": (
        lambda: PLAN.at(integers([[0], [-1]])),
        ValueError,
        "token_index must not be negative, got -1",
    ),
    "a negative index in a row": (
        lambda: PLAN.at(integers([0, -3]), integers([0])),
        ValueError,
        "token_index must not be negative, got -3",
    ),
    "decoding less than nothing": (
        lambda: PLAN.decode(-1),
        ValueError,
        "num_tokens must be at least 0, got -1",
    ),
    "starts of other rows": (
        lambda: PLAN.decode(start=integers([1, 2, 3])),
        ValueError,
        r"start must have shape \(2,\), got \(3,\)",
    ),
    "computed less than nothing": (
        lambda: PLAN.step([0, -2], [1, 1]),
        ValueError,
        r"num_computed_tokens must not be negative, got -2 at \[1\]",
    ),
    "scheduled less than nothing": (
        lambda: PLAN.step([0, 2], integers([-1, 1])),
        ValueError,
        r"num_scheduled_tokens must not be negative, got -1 at \[0\]",
    ),
    "tokens of no row": (
        lambda: PLAN.select([]).step([], [], num_tokens=2),
        ValueError,
        "num_tokens must be 0 for a plan without rows, got 2",
    ),
    "tokens of no row, unchecked": (
        lambda: PLAN.select([]).step([], [], num_tokens=2, validate=False),
        ValueError,
        "num_tokens must be 0 for a plan without rows, got 2",
    ),
    "fewer tokens than scheduled": (
        lambda: PLAN.step([0, 2], [2, 3], num_tokens=4),
        ValueError,
        "num_tokens must be at least 5, the tokens of all rows, got 4",
    ),
    "computed numbers that are floats": (
        lambda: PLAN.step([0.0, 2.0], [2, 3]),
        TypeError,
        "num_computed_tokens must be integers, got torch.float32",
    ),
    "scheduled numbers that are bools": (
        lambda: PLAN.step([0, 2], [True, False]),
        TypeError,
        "num_scheduled_tokens must be integers, got torch.bool",
    ),
    "numbers that are complex": (
        lambda: PLAN.step([0, 2], integers([1j, 2])),
        TypeError,
        "num_scheduled_tokens must be integers, got torch.complex64",
    ),
    "numbers of other rows": (
        lambda: PLAN.step([0, 2, 3], [2, 3]),
        ValueError,
        r"num_computed_tokens must have shape \(2,\), a number for each row .*, got \(3,\)",
    ),
    "a buffer too small": (
        lambda: PLAN.step([0, 2], [2, 3], out=torch.empty(3, 4, dtype=torch.int64)),
        ValueError,
        r"out must have shape \(3, at least 5\), got \(3, 4\)",
    ),
    "a buffer of other axes": (
        lambda: PLAN.step([0, 2], [2, 3], out=torch.empty(4, 5, dtype=torch.int64)),
        ValueError,
        r"out must have shape \(3, at least 5\), got \(4, 5\)",
    ),
    "a buffer of rows": (
        lambda: PLAN.step([0, 2], [2, 3], out=torch.empty(3, 5, 1, dtype=torch.int64)),
        ValueError,
        r"out must have shape \(3, at least 5\), got \(3, 5, 1\)",
    ),
    "a multiple that is none": (
        lambda: PLAN.position_ids(pad_to_multiple_of=0),
        ValueError,
        "pad_to_multiple_of must be at least 1, got 0",
    ),
    "no plan to join": (
        lambda: concatenate_plans([]),
        ValueError,
        "plans must hold at least one plan, got none",
    ),
    "plans on two devices": (
        lambda: concatenate_plans([PLAN, OTHERS["device"]]),
        ValueError,
        "plans must have one device, got cpu and, in plan 1, meta",
    ),
    "plans of two dtypes": (
        lambda: concatenate_plans([PLAN, OTHERS["dtype"]]),
        ValueError,
        "plans must have one dtype, got torch.int64 and, in plan 1, torch.int32",
    ),
    "plans of two conventions and families": (
        lambda: concatenate_plans([PLAN, OTHERS["family"]]),
        ValueError,
        r"one family, got qwen2_vl \(transformers\) and, in plan 1, glm4v \(sglang\)",
    ),
    "plans of two conventions": (
        lambda: concatenate_plans([PLAN, PLAN, OTHERS["convention"]]),
        ValueError,
        r"one convention, got qwen2_vl \(transformers\) and, in plan 2, qwen2_vl \(vllm\)",
    ),
    "a start of floats": (
        lambda: PLAN.decode(start=torch.tensor([1.0, 2.0])),
        TypeError,
        r"start must be integers, got torch\.float32",
    ),
    "a float to start from": (
        lambda: PLAN.decode(start=0.5),
        TypeError,
        r"start must be an int, got 0\.5",
    ),
    "an out of half precision": (
        lambda: PLAN.step([0, 0], [2, 2], out=torch.empty((3, 4), dtype=torch.bfloat16)),
        TypeError,
        r"out must be torch\.int64, int64 or int32, got torch\.bfloat16",
    ),
    "plans of two families": (
        lambda: concatenate_plans([PLAN, of_seconds([1.0])]),
        ValueError,
        r"got qwen2_vl \(transformers\) and, in plan 1, qwen2_5_vl \(transformers\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
