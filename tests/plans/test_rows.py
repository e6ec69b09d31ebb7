"""Rows of plans are joined."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import assert_same

from tests.plans.cases import (
    PACED,
    QWEN,
    cases,
    each_spec,
    integers,
    of_seconds,
)
from tests.test_guard import record
from vecrope import (
    concatenate_plans,
    plan_from_placeholders,
    plan_rope_index,
)


@each_spec
def test_joined_plans_are_the_rows_of_all(spec):
    @given(st.lists(cases(spec), min_size=1, max_size=3))
    def check(found):
        if len({case.plan.dtype for case in found}) > 1:
            return
        if (
            len(
                {
                    case.plan.time_scale.dtype
                    for case in found
                    if case.plan.time_scale.is_floating_point()
                }
            )
            > 1
        ):
            return
        plan = concatenate_plans([case.plan for case in found])
        assert_same(
            [plan.position_ids(), plan.rope_deltas],
            [
                torch.cat([case.whole.flatten(1) for case in found], 1),
                torch.cat([case.deltas for case in found]),
            ],
        )
        least = min(case.most for case in found)
        want = torch.cat([case.dense[:, :, :least] for case in found], 1)
        assert_same([plan.slice(0, least)], [want])
        lengths = integers([length for case in found for length in case.lengths])
        assert torch.equal(plan.row_bounds[1:], lengths.cumsum(0))
        assert_same([plan.decode(2)], [torch.cat([case.plan.decode(2) for case in found], 1)])
        assert plan.seq_len is None

    check()


def test_a_row_without_a_token_joins_plans_that_are_spaced_in_time():
    none = plan_rope_index(torch.zeros((2, 0), dtype=torch.int64), PACED)
    plan = of_seconds([0.7])
    got = concatenate_plans([none, plan, none])
    assert torch.equal(got.position_ids(), plan.position_ids().flatten(1))
    assert got.decode()[0, :, 0].tolist() == [0, 0, int(plan.decode()[0]), 0, 0]


def test_seconds_of_two_precisions_would_be_rounded_to_one():
    # In 32 bits the product of 25 and this is rounded up to a whole number.
    seconds = [1 / 25]
    narrow, wide = (
        of_seconds(integers(seconds, dtype=dtype)) for dtype in (torch.float32, torch.float64)
    )
    for plans in ([narrow, narrow], [wide, wide]):
        got = concatenate_plans(plans).position_ids()
        assert torch.equal(got, torch.cat([plan.position_ids().flatten(1) for plan in plans], 1))
    widened = replace(narrow, time_scale=narrow.time_scale.double())
    assert not torch.equal(widened.position_ids(), narrow.position_ids())
    with pytest.raises(
        ValueError,
        match=r"precision, got torch.float32 and, in plan 2, torch.float64; give second_per_",
    ):
        concatenate_plans([narrow, narrow, wide])


def text_plan(num_tokens, **options):
    none = torch.zeros(0, dtype=torch.int64)
    runs = dict.fromkeys(("offsets", "lengths", "modalities"), none)
    return plan_from_placeholders(num_tokens, QWEN, **runs, **options)


@pytest.mark.parametrize("num_tokens", [2**30 - 1, 2**30, 2**31 + 5])
def test_as_many_tokens_as_indices_can_number(num_tokens):
    plan = text_plan(num_tokens)
    wide = num_tokens >= 2**30
    assert plan.entries.dtype == (torch.int64 if wide else torch.int32)
    numbers = list(range(num_tokens - 2, num_tokens + 2))
    assert plan.slice(numbers[0], numbers[-1] + 1)[:, 0].tolist() == [numbers] * 3
    joined = concatenate_plans([plan] * 5)
    assert joined.slice(numbers[0], numbers[-1] + 1).tolist() == [[numbers] * 5] * 3
    assert joined.step([numbers[0]] * 5, [2] * 5).tolist() == [numbers[:2] * 5] * 3


@pytest.mark.parametrize(("num_tokens", "wide"), [(2**29 - 1, False), (2**29, True)])
def test_joined_plans_have_indices_of_64_bits_where_they_number_as_many(num_tokens, wide):
    joined = concatenate_plans([text_plan(2**29), text_plan(num_tokens)])
    assert joined.entries.dtype == (torch.int64 if wide else torch.int32)


@each_spec
def test_rows_are_selected_and_replaced(spec):
    @given(cases(spec), st.data())
    def check(case, data):
        batch = len(case.lengths)
        rows = data.draw(st.lists(st.integers(0, batch - 1), max_size=4))
        want = case.dense[:, rows]
        got = case.plan.select(data.draw(st.sampled_from([rows, integers(rows, dtype=torch.long)])))
        assert_same([got.slice(0, case.most)], [want])
        assert_same([got.rope_deltas], [case.deltas[rows]])
        lengths = [case.lengths[row] for row in rows]
        pieces = [case.dense[:, row, :length] for row, length in zip(rows, lengths, strict=True)]
        assert_same([got.position_ids()], [torch.cat([want[:, :0, 0], *pieces], 1)])
        order = data.draw(st.permutations(range(batch)))
        places = data.draw(st.lists(st.integers(0, batch - 1), unique=True))
        other = case.plan.select(order).select(range(len(places)))
        replaced = case.plan.replace(places, other)
        sources = [*range(batch)]
        for place, source in zip(places, order, strict=False):
            sources[place] = source
        assert_same([replaced.slice(0, case.most)], [case.dense[:, sources]])
        # What is left of a row, and what is not, are one plan each time.
        assert replaced.num_tokens == sum(case.lengths[row] for row in sources)

    check()


def test_rows_are_changed_by_a_fixed_number_of_operators():
    counts = set()
    for number in (4, 40):
        plans = [of_seconds([0.7])] * number
        plan, rows = concatenate_plans(plans), [*range(number // 2)]
        other = plan.select(rows)
        counts.add(
            tuple(
                record(function, 10**9).operators.total()
                for function in (
                    lambda plan=plan: len(plan),
                    lambda plan=plan, rows=rows: plan.select(rows),
                    lambda plan=plan, rows=rows, other=other: plan.replace(rows, other),
                    lambda plans=plans: concatenate_plans(plans),
                )
            )
        )
    ((length, *others),) = counts
    assert length == 0
    assert max(others) <= 100


def test_plans_that_go_on_hold_no_more_than_is_asked_for():
    plan = concatenate_plans([of_seconds([0.7])] * 4)
    held = plan
    for _ in range(5):
        held = held.replace([2, 0], of_seconds([0.7]).select([0, 0]))
    assert held.nbytes == plan.nbytes
    assert_same([held.position_ids()], [plan.position_ids()])


def test_a_plan_without_videos_joins_any_other():
    text = plan_rope_index(integers([[7, 8]]), PACED)
    image = plan_rope_index(
        integers([[7, PACED.image_token_id]]), PACED, image_grid_thw=integers([[1, 2, 2]])
    )
    for dtype in (torch.float32, torch.float64):
        video = of_seconds(integers([1 / 25], dtype=dtype))
        for plans in ([text, video, image], [video, image, text]):
            got = concatenate_plans(plans)
            want = [plan.position_ids().flatten(1) for plan in plans]
            assert torch.equal(got.position_ids(), torch.cat(want, 1))
