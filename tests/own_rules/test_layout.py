"""Positions that are laid out on the host."""

from vecrope.own_rules.layout import Layout


def test_text_and_cells_follow_each_other():
    layout = Layout(7)
    layout.count(0, 2)
    layout.cells(2, range(2, 4), range(-1, 1))
    layout.still(9, 1)
    assert layout.positions().tolist() == [
        [0, 1, 2, 2, 2, 2, 9],
        [0, 1, 2, 2, 3, 3, 9],
        [0, 1, -1, 0, -1, 0, 9],
    ]
    assert layout.largest == 9


def test_text_may_count_past_the_number_of_tokens():
    layout = Layout(2)
    layout.count(3, 2)
    layout.count(9, 0)
    assert layout.positions().tolist() == [[3, 4]] * 3
    assert layout.largest == 4


def test_nothing_is_laid_out():
    assert Layout(0).positions().shape == (3, 0)
