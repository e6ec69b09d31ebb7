"""Sequences that are refused, and in which words."""

import pytest
import torch
from oracles import spec_of

from tests.plans.sequence_cases import (
    QWEN,
    ids,
)
from vecrope import (
    get_rope_index,
    plan_rope_index,
)

ROW = {"input_ids": ids([[7, 8, 9, 7]]), "sequence_ids": ids([[1, 1, 2, 0]])}


SGLANG_QWEN = spec_of("qwen2_vl", "sglang")


REFUSED = {
    "numbers that go back": (
        {"sequence_ids": ids([[1, 1, 2, 2], [1, 2, 0, 1]]), "input_ids": ids([[7] * 4] * 2)},
        ValueError,
        "sequence_ids must not go back in a row, got 1 after 2 in row 1, token 3",
    ),
    "a negative number": (
        {"sequence_ids": ids([[1, -1, 2, 0]])},
        ValueError,
        "sequence_ids must not be negative, got -1 in row 0, token 1",
    ),
    "nothing but padding": (
        {"sequence_ids": ids([[0, 0, 0, 0]])},
        ValueError,
        "sequence_ids must hold a sequence, got 0 at every token",
    ),
    "no token": (
        {"input_ids": ids([[7]])[:, :0], "sequence_ids": ids([[1]])[:, :0]},
        ValueError,
        r"sequence_ids must hold a sequence, got no token in shape \(1, 0\)",
    ),
    "a mask, too": (
        {"attention_mask": ids([[1, 1, 1, 0]])},
        ValueError,
        "attention_mask must be None with sequence_ids",
    ),
    "bounds, too": (
        {"input_ids": ids([7, 8]), "sequence_ids": ids([1, 1]), "cu_seqlens": ids([0, 2])},
        ValueError,
        "cu_seqlens must be None with sequence_ids",
    ),
    "a bool": (
        {"sequence_ids": ids([[True, True, True, False]])},
        TypeError,
        "sequence_ids must be of a signed integer dtype or uint8, got torch.bool",
    ),
    "a list": (
        {"sequence_ids": [[1, 1, 2, 0]]},
        TypeError,
        "sequence_ids must be a tensor, got list",
    ),
    "another shape": (
        {"sequence_ids": ids([[1, 1, 2]])},
        ValueError,
        r"sequence_ids must have the shape of input_ids \(1, 4\), got \(1, 3\)",
    ),
    "a family that numbers padding": (
        {"spec": SGLANG_QWEN},
        ValueError,
        "qwen2_vl under convention 'sglang' leaves no token out; pack its sequences without",
    ),
    "too small a capacity": (
        {"max_sequences": 1},
        ValueError,
        "max_sequences must be at least 2 for this input, got 1",
    ),
    "a capacity of none": (
        {"max_sequences": 0},
        ValueError,
        "max_sequences must be at least 1, got 0",
    ),
    "a capacity that is no number": (
        {"max_sequences": True},
        TypeError,
        "max_sequences must be an int, got True",
    ),
    "a capacity without numbers": (
        {"sequence_ids": None, "max_sequences": 2},
        ValueError,
        "max_sequences must be None without sequence_ids, got 2",
    ),
    "no capacity where values cannot be read": (
        {
            "input_ids": torch.empty((1, 4), dtype=torch.int64, device="meta"),
            "sequence_ids": torch.empty((1, 4), dtype=torch.int64, device="meta"),
            "validate": False,
        },
        ValueError,
        "max_sequences must be given with sequence_ids where shapes must not depend on values",
    ),
    "a prompt that does not fit its grids": (
        {
            "input_ids": ids([[7, QWEN.image_token_id, 8, 7]]),
            "image_grid_thw": ids([[1, 4, 4]]),
        },
        ValueError,
        "was the prompt truncated inside the image?",
    ),
}


@pytest.mark.parametrize("function", [get_rope_index, plan_rope_index])
@pytest.mark.parametrize(("changes", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(changes, error, message, function):
    arguments = {**ROW, "spec": QWEN, **changes}
    with pytest.raises(error, match=message):
        function(**arguments)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 3, 2, 4], "cu_seqlens must not decrease, got 3 then 2"),
        ([0, 3], "cu_seqlens must run from 0 to the number of tokens 4, got 0 to 3"),
        ([1, 4], "cu_seqlens must run from 0 to the number of tokens 4, got 1 to 4"),
    ],
)
def test_bounds_refused(bounds, message):
    with pytest.raises(ValueError, match=message):
        get_rope_index(ids([7, 8, 9, 7]), QWEN, cu_seqlens=ids(bounds))


@pytest.mark.parametrize("multiple", [0, -2])
def test_a_multiple_that_is_none_is_refused(multiple):
    with pytest.raises(ValueError, match=f"pad_to_multiple_of must be at least 1, got {multiple}"):
        get_rope_index(ids([[7, 8]]), QWEN, pad_to_multiple_of=multiple)
