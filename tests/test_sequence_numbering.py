"""Sequences that are numbered from 0, and wrong types that once passed."""

from unittest import mock

import pytest
import torch
from oracles import spec_of
from torch._subclasses import FakeTensorMode

from vecrope import get_rope_index, plan_rope_index, sequence_ids_from_position_ids
from vecrope.inputs import Inputs
from vecrope.sequences import packed_sequences

SPEC = spec_of("qwen2_vl", "transformers")
IMAGE = SPEC.image_token_id
IDS = torch.tensor([[7, IMAGE, IMAGE, 8, 9, 0]])
GRIDS = torch.tensor([[1, 2, 4]])
FROM_ZERO = torch.tensor([[0, 0, 0, 0, 1, -1]], dtype=torch.int32)


@pytest.mark.parametrize("function", [get_rope_index, plan_rope_index])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_numbers_from_zero(function, dtype):
    numbers = FROM_ZERO.to(dtype)
    want = function(IDS, SPEC, image_grid_thw=GRIDS, sequence_ids=numbers.long() + 1)
    got = function(
        IDS, SPEC, image_grid_thw=GRIDS, sequence_ids=numbers, sequence_numbering="from_zero"
    )
    if function is plan_rope_index:
        want, got = ((plan.position_ids(), plan.rope_deltas) for plan in (want, got))
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)
    assert got[1].shape == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"sequence_ids": torch.tensor([[0, 0, 0, 0, 1, 1]])},
            "got 0, which is padding, at a placeholder in row 0, token 1; where the first sequence "
            "has number 0, pass sequence_numbering='from_zero'",
        ),
        (
            {
                "sequence_ids": torch.tensor([[1, 1, 1, 0, 2, 2]]),
                "mm_token_type_ids": torch.tensor([[0, 1, 1, 1, 0, 0]]),
            },
            "at a placeholder in row 0, token 3",
        ),
        (
            {"sequence_ids": FROM_ZERO - 1, "sequence_numbering": "from_zero"},
            "sequence_ids must not be less than -1, got -2 in row 0, token 5",
        ),
        (
            {"sequence_ids": FROM_ZERO * 0 - 1, "sequence_numbering": "from_zero"},
            "sequence_ids must hold a sequence, got -1 at every token",
        ),
        (
            {"sequence_ids": FROM_ZERO, "sequence_numbering": "zero"},
            "sequence_numbering must be 'from_one' or 'from_zero', got 'zero'",
        ),
        (
            {"attention_mask": torch.tensor([[1, 1, 1, 1, 2, 0]])},
            "row 0, token 4: attention_mask must hold 0 or 1, got 2; the numbers of several "
            "sequences are sequence_ids",
        ),
    ],
)
def test_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        get_rope_index(IDS, SPEC, image_grid_thw=GRIDS, **arguments)


def test_text_at_zero_is_padding_as_before():
    numbers = torch.tensor([[1, 1, 1, 1, 0, 0]])
    positions, _ = get_rope_index(IDS, SPEC, image_grid_thw=GRIDS, sequence_ids=numbers)
    assert positions[2, 0].tolist() == [0, 1, 2, 3, 0, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_positions_of_few_bits_do_not_wrap(dtype):
    most = torch.iinfo(dtype).max
    positions = torch.tensor([[most - 1, most, 0, 1]], dtype=dtype)
    assert sequence_ids_from_position_ids(positions).tolist() == [[1, 1, 2, 2]]
    lowest = torch.tensor([[most, torch.iinfo(dtype).min]], dtype=dtype)
    assert sequence_ids_from_position_ids(lowest).tolist() == [[1, 2]]


def fake():
    with FakeTensorMode():
        return torch.ones((1, 2), dtype=torch.int64)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (
            lambda: torch.nested.nested_tensor([torch.ones(2).long()], layout=torch.jagged),
            TypeError,
            "input_ids must be a dense tensor, got a nested one",
        ),
        (
            lambda: torch.ones((1, 2)).long().to_sparse(),
            TypeError,
            "input_ids must be a dense tensor, got one of layout torch.sparse_coo",
        ),
        (
            lambda: torch.ones((1, 2), dtype=torch.int64, device="meta"),
            ValueError,
            "input_ids must hold values, which are read here, .* on the meta device",
        ),
        (fake, ValueError, "input_ids must hold values, which are read here, .* a fake tensor"),
        (lambda: None, TypeError, "input_ids must be a tensor, got NoneType"),
    ],
    ids=["nested", "sparse", "meta", "fake", "none"],
)
def test_layouts_are_refused(ids, error, message):
    with pytest.raises(error, match=message):
        get_rope_index(ids(), SPEC)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_refused():
    values = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)
    with pytest.raises(TypeError, match="attention_mask must not be quantized"):
        sequence_ids_from_position_ids(IDS[:, :2], attention_mask=values[None])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda plan: plan.decode(1, start=-1), ValueError, "start must be at least 0, got -1"),
        (lambda plan: plan.decode(1, start=2**63), ValueError, "start must be less than"),
        (lambda plan: plan.decode(1.5), TypeError, r"num_tokens must be an int, got 1\.5"),
        (lambda plan: plan.at(None), TypeError, "token_index must be a tensor, got NoneType"),
        (lambda plan: plan.slice(None, 3), TypeError, "start must be an int, got None"),
        (
            lambda plan: plan.position_ids(pad_to_multiple_of="8"),
            TypeError,
            "pad_to_multiple_of must be an int, got '8'",
        ),
        (
            lambda _: plan_rope_index(IDS, SPEC, max_groups=2**40),
            ValueError,
            r"max_groups must be less than 2\*\*30",
        ),
        (lambda _: plan_rope_index(IDS, None), TypeError, "spec must be an MRopeSpec"),
    ],
)
def test_wrong_numbers_are_refused(call, error, message):
    plan = plan_rope_index(IDS, SPEC, image_grid_thw=GRIDS)
    with pytest.raises(error, match=message):
        call(plan)


@pytest.mark.parametrize(
    ("numbers", "numbering", "invalid"),
    [
        ([1, 1, 1, 1, 2, 0], "from_one", False),
        ([2, 2, 2, 2, 1, 0], "from_one", True),
        ([0, 0, 0, 0, 0, 0], "from_one", True),
        ([1, 1, 0, 1, 2, 0], "from_one", True),  # a placeholder is numbered as padding
        ([0, 0, 0, 0, 1, -1], "from_zero", False),
        ([0, 0, -1, 0, 1, -1], "from_zero", False),
        ([1, 1, 1, 1, 0, -1], "from_zero", True),
    ],
)
def test_what_is_wrong_under_tracing_is_told_and_not_raised(numbers, numbering, invalid):
    given = torch.tensor([numbers])
    with mock.patch("torch.compiler.is_compiling", return_value=True):
        _, fault = packed_sequences(Inputs(IDS, GRIDS), SPEC, given, 3, numbering, validate=True)
    assert bool(fault) is invalid


def test_a_mask_beside_positions_is_not_looked_at_under_tracing():
    positions, mask = torch.tensor([[0, 1, 0]], device="cpu"), torch.ones(1, 3, device="meta")
    with pytest.raises(ValueError, match="attention_mask must hold values"):
        sequence_ids_from_position_ids(positions, mask.long())
    with mock.patch("torch.compiler.is_compiling", return_value=True):
        got = sequence_ids_from_position_ids(positions, torch.tensor([[1, 1, 0]]))
    assert got.tolist() == [[1, 1, 0]]
