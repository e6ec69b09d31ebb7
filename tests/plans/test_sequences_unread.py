"""Sequences where no value may be read, and a capacity is given."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import spec_of
from packings import packings
from support import LEAST, assert_no_answer, assert_same, at_most
from torch._subclasses import FakeTensorMode

from tests.plans.sequence_cases import (
    QWEN,
    SPECS,
    each_spec,
    ids,
    ids_of,
    planned_index,
)
from vecrope import (
    get_rope_index,
    plan_rope_index,
    sequence_ids_from_position_ids,
)

ROW = {"input_ids": ids([[7, 8, 9, 7]]), "sequence_ids": ids([[1, 1, 2, 0]])}


STATIC = {"max_sequences": 3, "max_groups": 9, "validate": False}


def test_unchecked_too_small_a_capacity_gives_no_answer():
    arguments = {**ROW, **STATIC, "max_sequences": 1}
    assert_no_answer(planned_index(arguments.pop("input_ids"), QWEN, **arguments))


def test_too_few_groups_give_no_answer_where_deltas_are_of_padded_rows():
    spec = spec_of("glm4v", "sglang")
    arguments = {**ROW, **STATIC, "max_groups": 1}
    answer = planned_index(arguments.pop("input_ids"), spec, **arguments)
    assert_no_answer(answer)
    assert answer[1].tolist() == [[LEAST]] * 3


@each_spec
@given(data=st.data())
@at_most(10)
def test_the_least_capacity_suffices_and_no_less(spec, data):
    """However many sequences there is room for: those that are not there need no entry."""
    packing = data.draw(packings(spec))
    arguments = packing.arguments()
    want = get_rope_index(packing.input_ids, spec, **arguments)
    least = None
    for room in (0, data.draw(st.integers(1, 3))):
        arguments["max_sequences"] = len(packing.parts) + room
        if least is None:
            try:
                planned_index(packing.input_ids, spec, **arguments, max_groups=1)
                least = 1
            except ValueError as error:
                found = re.fullmatch(
                    r"max_groups must be at least (\d+) for this input, got 1", str(error)
                )
                least = int(found[1])
        for validate in (True, False):
            options = {**arguments, "validate": validate}
            got = planned_index(packing.input_ids, spec, **options, max_groups=least)
            assert_same((got[0], got[1][: len(packing.parts)]), want)
        if least > 1:
            less = planned_index(
                packing.input_ids, spec, **arguments, validate=False, max_groups=least - 1
            )
            assert_no_answer(less)
            with pytest.raises(
                ValueError, match=f"at least {least} for this input, got {least - 1}"
            ):
                planned_index(packing.input_ids, spec, **arguments, max_groups=least - 1)


@pytest.mark.parametrize("max_sequences", [2, 3, 9])
@pytest.mark.parametrize(
    ("sequence_ids", "max_groups"),
    [
        ([[1, 1, 2, 2]], 2),
        ([[1, 1, 1, 2]], 2),
        ([[1, 1, 2, 0]], 3),
        ([[0, 1, 2, 2]], 2),
        ([[1, 0], [0, 1]], 4),
    ],
    ids=str,
)
def test_sequences_that_are_not_there_need_no_entry(sequence_ids, max_groups, max_sequences):
    sequence_ids = ids(sequence_ids)
    arguments = {
        "input_ids": torch.full_like(sequence_ids, 7),
        "spec": QWEN,
        "sequence_ids": sequence_ids,
    }
    want = get_rope_index(**arguments)
    for options in ({}, {"max_groups": max_groups}, {"validate": False, "max_groups": max_groups}):
        got = planned_index(**arguments, max_sequences=max_sequences, **options)
        assert_same((got[0], got[1][:2]), want)
        assert not got[1][2:].any()


def test_unchecked_without_a_sequence_all_is_padding():
    rows = ids([[7, 8]])
    for capacity in ({}, {"max_sequences": 1}):
        answer = get_rope_index(
            rows, QWEN, sequence_ids=torch.zeros_like(rows), validate=False, **capacity
        )
        assert_same(answer, (torch.zeros((3, 1, 2), dtype=torch.int64), ids([[0]])))


@pytest.mark.parametrize("spec", [QWEN, SPECS["glm4v-sglang"]], ids=["valid", "padded"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_operation_depends_on_values(spec, device):
    with FakeTensorMode():
        rows = torch.empty((2, 6), dtype=torch.int64, device=device)
        plan = plan_rope_index(
            rows,
            spec,
            sequence_ids=rows,
            image_grid_thw=torch.empty((2, 3), dtype=torch.int64, device=device),
            **STATIC,
        )
        assert plan.position_ids(text_positions=True, pad_to_multiple_of=4).shape == (4, 2, 8)
        assert plan.shard(1, 2, text_positions=True).shape == (4, 2, 3)
        assert plan.rope_deltas.shape == (3, 1)
        assert sequence_ids_from_position_ids(rows, rows).shape == (2, 6)


@pytest.fixture(scope="module")
def compiled():
    torch._dynamo.reset()
    return torch.compile(get_rope_index, fullgraph=True, dynamic=True, backend="eager")


def test_compiled_equals_eager(compiled):
    for rows, numbers in (
        (["tIIttt", "tttIIt"], [[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 3]]),
        (["tIItttIIt", "ttttttttt"], [[1, 1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 2, 2, 2, 0, 0, 0, 0]]),
    ):
        arguments = {
            "image_grid_thw": ids([[1, 2, 4], [1, 2, 4]]),
            "sequence_ids": ids(numbers),
            "text_positions": True,
            "pad_to_multiple_of": 4,
            "max_sequences": 6,
        }
        rows = ids_of(QWEN, rows)
        assert_same(
            compiled(rows, QWEN, **arguments),
            get_rope_index(rows, QWEN, **arguments),
        )


@pytest.mark.parametrize(
    "numbers",
    [[[2, 2, 1, 1]], [[1, -1, 1, 1]], [[0, 0, 0, 0]], [[1, 2, 3, 4]]],
    ids=["back", "negative", "none", "too many"],
)
def test_compiled_what_is_refused_gives_no_answer(numbers, compiled):
    rows = ids([[7, 8, 9, 7]])
    assert_no_answer(compiled(rows, QWEN, sequence_ids=ids(numbers), max_sequences=3))
