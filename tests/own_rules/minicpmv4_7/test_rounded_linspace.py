"""How thumbnails are spread over their slices."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vecrope.own_rules.minicpmv4_7.canvas import spread_over
from vecrope.own_rules.minicpmv4_7.static import rounded_linspace


def spread(index, extent, count):
    index, extent, count = torch.broadcast_tensors(index, extent, count)
    reach, last = count - 1, extent - 1
    step = (last.double() / reach.clamp(min=1)).float()
    return rounded_linspace(index, reach, (count // 2).clamp(min=1), last, step)


def test_a_thumbnail_is_spread_as_linspace_does():
    extents = torch.arange(1, 201)
    for count in range(1, 65):
        lines = [torch.linspace(0, extent - 1, count) for extent in extents.tolist()]
        expected = torch.stack(lines).round().long()
        got = spread(torch.arange(count), extents[:, None], torch.tensor(count))
        assert torch.equal(got, expected), count


@given(st.integers(2, 2**16), st.data())
def test_large_extents_are_spread_as_linspace_does(extent, data):
    count = data.draw(st.integers(1, (2**20 - 1) // (extent - 1) + 1))
    got = spread(torch.arange(count), torch.tensor(extent), torch.tensor(count))
    assert torch.equal(got, torch.linspace(0, extent - 1, count).round().long())


@given(st.integers(1, 2**16), st.integers(0, 99), st.data())
def test_the_host_spreads_alike(extent, first, data):
    most = 300 if extent == 1 else min(300, (2**20 - 1) // (extent - 1) + 1)
    count = data.draw(st.integers(1, most))
    expected = torch.linspace(0, extent - 1, count).round().long() + first
    assert [*spread_over(count, extent, first)] == expected.tolist()


def test_exact_fractions_would_be_rounded_otherwise():
    # Position 21 of 43 is 1.5, and float32 comes out right below it.
    got = spread(torch.arange(43), torch.tensor(4), torch.tensor(43)).tolist()
    exact = [round(Fraction(3 * index, 42)) for index in range(43)]
    assert [index for index in range(43) if got[index] != exact[index]] == [21]
    assert [*spread_over(43, 4, 0)] == got


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
def test_inductor_keeps_every_rounding():
    extent, count = torch.tensor(4), torch.tensor(43)
    compiled = torch.compile(spread, fullgraph=True, dynamic=True)
    for length in (43, 30):
        index = torch.arange(length)
        assert torch.equal(compiled(index, extent, count), spread(index, extent, count))
