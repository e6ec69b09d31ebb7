"""Sequences are told by text positions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packings import packings
from support import at_most
from transformers.masking_utils import find_packed_sequence_indices

from tests.plans.sequence_cases import (
    each_spec,
    ids,
)
from vecrope import (
    get_rope_index,
    sequence_ids_from_position_ids,
)


@each_spec
@given(data=st.data())
@at_most(10)
def test_transformers_finds_the_sequences_in_the_text_row(spec, data):
    packing = data.draw(packings(spec))
    position_ids, _ = get_rope_index(
        packing.input_ids, spec, **packing.arguments(), text_positions=True
    )
    found = find_packed_sequence_indices(position_ids[0])
    valid = packing.sequence_ids > 0
    same = packing.sequence_ids[:, :, None] == packing.sequence_ids[:, None, :]
    both = valid[:, :, None] & valid[:, None, :]
    if found is None:
        assert bool(same[both].all())
    else:
        assert torch.equal((found[:, :, None] == found[:, None, :])[both], same[both])
        # Padding is of no sequence that holds tokens.
        mixed = valid[:, :, None] & ~valid[:, None, :]
        assert not bool((found[:, :, None] == found[:, None, :])[mixed].any())


@each_spec
@given(data=st.data())
@at_most(10)
def test_the_numbers_are_found_in_the_text_row(spec, data):
    packing = data.draw(packings(spec))
    position_ids, _ = get_rope_index(
        packing.input_ids, spec, **packing.arguments(), text_positions=True
    )
    valid = packing.sequence_ids > 0
    got = sequence_ids_from_position_ids(position_ids, valid.long())
    assert torch.equal(got, sequence_ids_from_position_ids(position_ids[0], valid))
    before = torch.nn.functional.pad(packing.sequence_ids.cummax(1).values[:, :-1], (1, 0))
    want = (packing.sequence_ids > before).cumsum(1) * valid
    assert torch.equal(got, want)


@given(st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=3))
def test_the_numbers_are_those_of_transformers(rows):
    positions = torch.tensor(rows)
    found = find_packed_sequence_indices(positions)
    want = torch.zeros_like(positions) if found is None else found
    assert torch.equal(sequence_ids_from_position_ids(positions), want + 1)


RESETS = {
    "one sequence": ([[0, 1, 2]], None, [[1, 1, 1]]),
    "one that goes on from before": ([[5, 6, 0]], None, [[1, 1, 2]]),
    "sequences of one token": ([[0, 0, 0]], None, [[1, 2, 3]]),
    "padding on both sides": ([[0, 0, 1, 0, 0]], [[0, 1, 1, 1, 0]], [[0, 1, 1, 2, 0]]),
    "a hole": ([[0, 0, 1]], [[1, 0, 1]], [[1, 0, 1]]),
    "nothing but padding": ([[0, 0]], [[0, 0]], [[0, 0]]),
    "no token": ([[]], [[]], [[]]),
}


@pytest.mark.parametrize(("positions", "mask", "want"), RESETS.values(), ids=RESETS.keys())
def test_resets_by_hand(positions, mask, want):
    mask = None if mask is None else torch.tensor(mask, dtype=torch.bool)
    got = sequence_ids_from_position_ids(torch.tensor(positions, dtype=torch.int64), mask)
    assert got.tolist() == want
    assert got.dtype == torch.int64


@pytest.mark.parametrize(
    ("positions", "mask", "error", "message"),
    [
        (ids([0, 1]), None, ValueError, r"position_ids must have shape \(B, T\), .* got \(2,\)"),
        (ids([[[0]]] * 3), None, ValueError, r"got \(3, 1, 1\)"),
        (ids([[0.0]]), None, TypeError, "position_ids must be of a signed integer dtype"),
        (ids([[0]]), ids([[1.0]]), TypeError, "attention_mask must hold integers or bools"),
        (ids([[0]]), ids([1]), ValueError, r"attention_mask must have shape \(1, 1\), got \(1,\)"),
        (ids([[0]]), [[1]], TypeError, "attention_mask must be a tensor, got list"),
    ],
    ids=["a row alone", "three axes", "floats", "a mask of floats", "another mask", "a list"],
)
def test_resets_refused(positions, mask, error, message):
    with pytest.raises(error, match=message):
        sequence_ids_from_position_ids(positions, mask)
