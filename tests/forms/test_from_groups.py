"""Positions of groups, worked by hand."""

import pytest
import torch
from support import assert_same

from vecrope import positions_of_groups

# Groups, worked by hand


@pytest.mark.parametrize(
    ("num_tokens", "groups", "positions", "delta"),
    [
        pytest.param(3, [], [[0, 1, 2]] * 3, 0, id="text"),
        pytest.param(1, [], [[0]] * 3, 0, id="one token"),
        pytest.param(
            4, [(1, 1, 1, 2)], [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]], 0, id="an image"
        ),
        pytest.param(
            5,
            [(1, 1, 1, 2), (3, 1, 1, 2)],
            [[0, 1, 1, 3, 3], [0, 1, 1, 3, 3], [0, 1, 2, 3, 4]],
            0,
            id="two that touch",
        ),
        pytest.param(
            4, [(0, 3, 1, 1)], [[0, 1, 2, 3], [0, 0, 0, 3], [0, 0, 0, 3]], 0, id="a block"
        ),
        pytest.param(
            4,
            [(0, 3, 1, 1, 0.0)],
            [[0, 0, 0, 1]] * 3,
            -2,
            id="a block whose frames are of one time",
        ),
        pytest.param(
            4,
            [(0, 3, 1, 1, 2.6)],
            [[0, 2, 5, 6], [0, 0, 0, 6], [0, 0, 0, 6]],
            3,
            id="a block in time, rounded down",
        ),
        pytest.param(
            3, [(0, 2, 1, 1, 99.0)], [[0, 99, 100], [0, 0, 100], [0, 0, 100]], 98, id="far apart"
        ),
        pytest.param(
            3, [(1, 2, 1, 1, 2.0)], [[0, 1, 3], [0, 1, 1], [0, 1, 1]], 1, id="two positions apart"
        ),
        pytest.param(
            5,
            [(0, 1, 1, 1, 1.0), (1, 2, 1, 1, 3.0), (3, 2, 1, 1, 1.0)],
            [[0, 1, 4, 5, 6], [0, 1, 1, 5, 5], [0, 1, 1, 5, 5]],
            2,
            id="in time and not",
        ),
        # qwen2_5_vl, 2 positions a second, 2 / 0.3 seconds a step, as float32: 39 and not 40.
        pytest.param(
            4,
            [(0, 4, 1, 1, torch.tensor(2 / 0.3).item() * 2)],
            [[0, 13, 26, 39], [0] * 4, [0] * 4],
            36,
            id="in float64",
        ),
    ],
)
def test_groups(num_tokens, groups, positions, delta):
    found = positions_of_groups(num_tokens, groups)
    assert_same(found[:1], (torch.tensor(positions),))
    assert found[1] == delta
    assert type(found[1]) is int


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match="one token at least, got 0"):
        positions_of_groups(0, [])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            [(0, 2, 1, 1, 0.5), (2, 0, 1, 2)],
            r"^group 1 must have at least one frame, row and column, got \(0, 1, 2\)$",
        ),
        (
            [(0, 1, 1, 2), (1, 1, 1, 2)],
            r"^group 1 must lie between tokens 2 and 6, got tokens 1 to 3$",
        ),
        (
            [(0, 1, 1, 2), (3, 1, 2, 2)],
            r"^group 1 must lie between tokens 2 and 6, got tokens 3 to 7$",
        ),
        ([(-1, 1, 1, 2)], "^group 0 must lie between tokens 0 and 6, got tokens -1 to 1$"),
        # The groups before it are sound: at rest, far apart in time, up to the last token.
        ([(0, 2, 1, 1, 0.0), (2, 2, 1, 1, 99.0), (4, 0, 1, 2)], "^group 2 must have at least one"),
        ([(0, 2, 1, 1), (2, 4, 1, 1, -0.5)], "^group 1 must have a step in time of at least 0"),
        ([(0, 2, 1, 1, 2.0**29)], "got 536870912.0 for 2 frames$"),
    ],
)
def test_groups_that_do_not_fit_are_named(groups, message):
    with pytest.raises(ValueError, match=message):
        positions_of_groups(6, groups)


def test_one_frame_has_no_time_scale():
    position_ids, delta = positions_of_groups(4, [(1, 1, 1, 2, -1.0)])
    assert position_ids.tolist() == [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]
    assert delta == 0
