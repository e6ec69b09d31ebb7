"""How thumbnails are spread over their slices."""

from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from vecrope.own_rules.minicpmv4_7.canvas import spread_over


def spread(count, extent):
    """Return where lines lie; the markers around them are one further out."""
    before, *lines, behind = spread_over(count, extent)
    assert (before, behind) == (-1, extent)
    return lines


def test_a_thumbnail_is_spread_as_linspace_does():
    for count in range(1, 65):
        for extent in range(1, 201):
            expected = torch.linspace(0, extent - 1, count).round().long()
            assert spread(count, extent) == expected.tolist(), (count, extent)


@given(st.integers(1, 2**16), st.data())
def test_large_extents_are_spread_as_linspace_does(extent, data):
    most = 300 if extent == 1 else (2**20 - 1) // (extent - 1) + 1
    count = data.draw(st.integers(1, most))
    expected = torch.linspace(0, extent - 1, count).round().long()
    assert spread(count, extent) == expected.tolist()


def test_the_lines_of_a_slice_lie_between_its_corners():
    assert [*spread_over(3, 0)] == [0, 0, 1, 2, 2]


def test_exact_fractions_would_be_rounded_otherwise():
    # Position 21 of 43 is 1.5, and float32 comes out right below it.
    got = spread(43, 4)
    exact = [round(Fraction(3 * index, 42)) for index in range(43)]
    assert [index for index in range(43) if got[index] != exact[index]] == [21]
