"""Shards are refused where bounds are missing, are not asked for, or have no shape of bounds."""

import pytest
import torch

from vecrope import shard_indices


@pytest.mark.parametrize(
    ("layout", "bounds", "message"),
    [
        ("contiguous", [0, 8], "cu_seqlens must be None in the 'contiguous' layout"),
        ("zigzag_sequences", None, "must be given in the 'zigzag_sequences' layout, got None"),
        ("zigzag_sequences", [0], r"must have shape \(num_sequences \+ 1,\), got \(1,\)"),
    ],
)
def test_bounds_of_shards(layout, bounds, message):
    cu_seqlens = None if bounds is None else torch.tensor(bounds)
    with pytest.raises(ValueError, match=message):
        shard_indices(8, 0, 2, layout, cu_seqlens=cu_seqlens)


def test_empty_sequences_have_no_column():
    bounds = torch.tensor([0, 0, 4, 4])
    columns = shard_indices(4, 0, 2, "zigzag_sequences", cu_seqlens=bounds)
    assert columns.tolist() == [0, 3]
