"""Any tokens of a plan, by every method, are those of the loop."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import assert_same, fitting, kept, rope_index
from torch.nn.functional import pad

from tests.plans.cases import (
    INDEX_DTYPES,
    PLAN,
    QWEN,
    cases,
    drawn_integers,
    each_spec,
    integers,
    shapes,
)
from vecrope import plan_rope_index
from vecrope.plans import table


@each_spec
def test_any_tokens_are_those_of_the_loop(spec):
    @given(cases(spec), st.data())
    def check(case, data):
        got = case.plan.position_ids(), case.plan.rope_deltas
        assert_same(got, (case.whole, case.deltas))
        assert_same(got, case.answer)
        assert len(case.plan) == case.plan.num_rows == len(case.lengths)
        assert case.plan.num_tokens == sum(case.lengths)
        for check_one in (check_slices, check_any_rows, check_each_row, check_decoding, check_step):
            check_one(case, data.draw)

    check()


def check_slices(case, draw):
    """Slices in any order make the whole."""
    cuts = [0, *sorted(draw(st.lists(st.integers(0, case.most), max_size=4))), case.most]
    spans = list(enumerate(pairwise(cuts)))
    pieces = {at: case.plan.slice(*span) for at, span in draw(st.permutations(spans))}
    for at, (start, stop) in spans:
        assert pieces[at].shape == (3, len(case.lengths), stop - start)
    assert_same([torch.cat([pieces[at] for at, _ in spans], 2)], [case.dense])


def check_any_rows(case, draw):
    index = drawn_integers(draw, draw(shapes), case.most - 1, INDEX_DTYPES)
    shape = draw(st.sampled_from([index.shape, index.shape[1:], ()]))
    rows = drawn_integers(draw, shape, len(case.lengths) - 1, INDEX_DTYPES)
    want = case.dense[:, rows.long(), index.long()]
    for validate in (True, False):
        assert_same([case.plan.at(index, rows, validate=validate)], [want])
    # Rows may be the wider of the two.
    assert_same([case.plan.at(index.new_zeros(()), rows)], [case.dense[:, rows.long(), 0]])


def check_each_row(case, draw):
    batch = len(case.lengths)
    shape = [batch, *draw(shapes)]
    index = drawn_integers(draw, shape, case.most - 1, INDEX_DTYPES)
    want = case.dense.gather(2, index.long().view(1, batch, -1).expand(3, -1, -1))
    for validate in (True, False):
        assert_same([case.plan.at(index, validate=validate)], [want.view(3, *shape)])


def check_decoding(case, draw):
    """Decoding goes on where each row ends."""
    batch, num_tokens = len(case.lengths), draw(st.integers(0, 3))
    starts = draw(st.lists(st.integers(0, 4), min_size=batch, max_size=batch))
    want = [
        case.dense[:, row, length + start : length + start + num_tokens]
        for row, (length, start) in enumerate(zip(case.lengths, starts, strict=True))
    ]
    got = case.plan.decode(num_tokens, start=integers(starts, dtype=torch.int32))
    assert_same([got], [torch.stack(want, 1)])
    want = case.plan.decode(num_tokens, start=integers([starts[0]] * batch))
    assert_same([case.plan.decode(num_tokens, start=starts[0])], [want])
    assert_same([case.plan.decode(num_tokens, start=integers(starts[0]))], [want])


def check_step(case, draw):
    """A step is a loop over the rows."""
    batch, room = len(case.lengths), draw(st.integers(0, 3))
    bounds = st.tuples(*[st.integers(0, case.most - room)] * 2).map(sorted)
    cuts = draw(st.lists(bounds, min_size=batch, max_size=batch))
    computed = [start for start, _ in cuts]
    scheduled = [stop - start for start, stop in cuts]
    pieces = [case.dense[:, row, start:stop] for row, (start, stop) in enumerate(cuts)]
    want = torch.cat(pieces, 1)
    assert_same([case.plan.step(computed, scheduled)], [want])
    buffer = torch.full((3, want.shape[1] + 2), -5, dtype=torch.int32)
    as_tensors = (integers(computed, dtype=torch.int32), integers(scheduled))
    view = case.plan.step(*as_tensors, out=buffer)
    assert view._base is buffer
    assert_same([view, buffer], [want.int(), pad(want.int(), (0, 2), value=-5)])
    # With columns to spare the last row goes on in them.
    stop = cuts[-1][1]
    padded = torch.cat((want, case.dense[:, -1, stop : stop + room]), 1)
    for validate in (True, False):
        got = case.plan.step(*as_tensors, num_tokens=padded.shape[1], validate=validate)
        assert_same([got], [padded])


@each_spec
def test_entries_are_spread_over_the_tokens_of_a_long_step(spec, monkeypatch):
    """It is what a search for the entry of each token gives."""
    monkeypatch.setattr(table, "SPREAD_FROM", 1)

    @given(cases(spec), st.data())
    def check(case, data):
        check_step(case, data.draw)

    check()


@each_spec
def test_the_delta_is_what_decoding_adds(spec):
    """As engines decode: the index of a token plus its row's delta."""

    @given(fitting(spec), st.integers(0, 5))
    def check(prompt, start):
        plan = rope_index(prompt, plan_rope_index)
        length = torch.full((plan.num_rows, 1), prompt.input_ids.shape[1])
        if spec.delta_length == "valid":
            length = kept(prompt).sum(1, keepdim=True)
        want = (length + start + torch.arange(3) + plan.rope_deltas).expand(3, -1, -1)
        assert torch.equal(plan.decode(3, start=start), want)

    check()


def test_decoding_takes_one_token_if_not_told():
    assert plan_rope_index(integers([[7, 7]]), QWEN).decode().tolist() == [[[2]]] * 3


def test_a_buffer_may_have_no_column_to_spare():
    buffer = torch.empty((3, 5), dtype=torch.int64)
    PLAN.step([0, 2], [2, 3], out=buffer)
    assert_same([buffer], [PLAN.step([0, 2], [2, 3])])


def test_every_length_is_a_multiple_of_one():
    assert_same([PLAN.position_ids(pad_to_multiple_of=1)], [PLAN.position_ids()])


@pytest.mark.parametrize("shape", [(0, 3), (0, 0), (2, 0)], ids=str)
@each_spec
def test_without_tokens(spec, shape):
    batch = shape[0]
    plan = plan_rope_index(torch.zeros(shape, dtype=torch.int64), spec)
    assert plan.position_ids().shape == (3, *shape)
    assert plan.rope_deltas.shape == (batch, 1)
    assert plan.rope_deltas.dtype == plan.next_positions.dtype == torch.int64
    decoded = torch.arange(2, 5).expand(3, batch, 3)
    assert_same([plan.slice(2, 5), plan.decode(3, start=2)], [decoded] * 2)
    assert_same([plan.at(decoded[0])], [decoded])
    assert_same([plan.step([2] * batch, [3] * batch)], [decoded.flatten(1)])
