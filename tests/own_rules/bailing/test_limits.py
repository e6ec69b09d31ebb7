"""Positions of 32 bits, as a device has them, held against limits that need more."""

import pytest
import torch

from vecrope.families.rules import Bailing
from vecrope.own_rules.bailing import _outside


@pytest.mark.parametrize("limit", [2**31, 2**32, 2**40])
def test_a_limit_may_be_wider_than_the_positions(limit):
    positions = torch.tensor([-(2**31), 0, 2**31 - 1], dtype=torch.int32)
    assert not _outside(positions, Bailing(-limit - 1, limit)).any()
    assert _outside(positions, Bailing(-5, 5)).tolist() == [True, False, True]
