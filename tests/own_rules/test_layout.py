"""What is laid out on the host, as positions and as lines."""

import pytest
import torch
from own_support import positions_of_blocks

from vecrope.inputs import Inputs
from vecrope.own_rules.common import unmasked_tokens
from vecrope.own_rules.layout import Layout


def layout_of(*lengths, index_axes=None):
    ids = torch.zeros(sum(lengths), dtype=torch.int64)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return Layout(unmasked_tokens(Inputs(ids, cu_seqlens=bounds)), index_axes)


def test_text_and_frames_follow_each_other():
    layout = layout_of(12)
    for _, own in layout.rows((2, 6)):
        assert own == range(2)
        layout.text(2)
        layout.frame(2, range(2, 4), range(-1, 1))
        layout.frame(9, (7,), (8, 8))
        layout.frame(9, (3,), (0, 1, 2, 5))
    expected = [
        [0, 1, 2, 2, 2, 2, 9, 9, 9, 9, 9, 9],
        [0, 1, 2, 2, 3, 3, 7, 7, 3, 3, 3, 3],
        [0, 1, -1, 0, -1, 0, 8, 8, 0, 1, 2, 5],
    ]
    assert layout.positions().tolist() == positions_of_blocks(layout.blocks()) == expected
    assert len(layout.blocks()) == 5


def test_media_belong_to_the_rows_that_they_start_in():
    layout = layout_of(2, 0, 3, 1)
    assert [(end, [*own]) for end, own in layout.rows((0, 2, 4))] == [
        *((2, [0]), (2, []), (5, [1, 2]), (6, []))
    ]
    assert layout.ends == [2, 0, 3, 1]


@pytest.mark.parametrize("added", [0, 2])
def test_the_index_comes_before_width_height_and_time(added):
    layout = layout_of(1, 3, index_axes=added)
    for _, own in layout.rows((1,)):
        for _ in own:
            layout.frame(5, range(1), range(7, 9))
            layout.now, layout.reach = 2, 6
    expected = [[0, 0, 1, 2]] * added + [[0, 7, 8, 2], [0, 0, 0, 2], [0, 5, 5, 2]]
    assert layout.positions().tolist() == positions_of_blocks(layout.blocks()) == expected
    assert layout.num_axes == len(expected)
    assert layout.ends == [1, 6]


def test_text_may_count_past_the_number_of_tokens():
    layout = layout_of(2)
    layout.now = 3
    layout.text(2)
    layout.text(2)
    assert layout.positions().tolist() == [[3, 4]] * 3
    assert layout.now == 5


def test_nothing_is_laid_out():
    layout = layout_of(0)
    assert layout.positions().shape == (3, 0)
    assert layout.blocks() == []
