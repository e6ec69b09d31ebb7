"""Searches and tables, small and large: what torch's own operators answer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vecrope.core import search
from vecrope.core.search import compact

ascending = st.lists(st.integers(-2, 12), max_size=6).map(sorted)


@pytest.fixture(params=[1, 2**16], ids=["large", "small"], autouse=True)
def size(request, monkeypatch):
    monkeypatch.setattr(search, "PARALLEL_FROM", request.param)


def test_places_are_spread_over_entries():
    for sizes in ([3], [0, 2, 0, 0, 1, 4, 0], [1, 0], [0, 0, 1]):
        got = search.spread(torch.tensor(sizes), sum(sizes))
        expected = [entry for entry, number in enumerate(sizes) for _ in range(number)]
        assert (got.dtype, got.tolist()) == (torch.int64, expected)


def test_bounds_that_are_not_above_a_value_are_counted():
    @given(ascending, st.lists(st.integers(-3, 13), min_size=1, max_size=5), st.booleans())
    def check(bounds, values, right):
        bounds, values = (torch.tensor(given, dtype=torch.int64) for given in (bounds, values))
        got = search.search(bounds, values, right=right)
        assert torch.equal(got, torch.searchsorted(bounds, values, right=right))
        assert search.search(bounds, values[0]).shape == ()

    check()


def test_starts_that_are_not_above_a_number_are_counted():
    @given(ascending, st.integers(0, 9))
    def check(starts, total):
        got = search.count_begun(torch.tensor(starts, dtype=torch.int64), total)
        assert got.tolist() == [sum(start <= place for start in starts) for place in range(total)]

    check()


def test_flags_are_numbered_up_to_a_capacity():
    for flags in ([1, 0, 1, 1, 0], [0, 0], [1, 1, 1]):
        at = [index for index, flag in enumerate(flags) if flag]
        given_flags = torch.tensor(flags).bool()
        for capacity in range(5):
            found, number = compact(given_flags, capacity, torch.int32)
            assert found.dtype == torch.int32
            assert found.tolist() == (at + [len(flags)] * capacity)[:capacity]
            assert number.item() == len(at)
