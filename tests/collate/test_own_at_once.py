"""Samples of families with a rule of their own are numbered at once, each as it is alone."""

import sys
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from own_support import SPECS, minicpm_spec, single_rows, unmasked
from support import kept

from tests.collate.model_samples import samples_of
from vecrope import collate
from vecrope.testing import conversations

NAMES = ("isaac", "bailing", "bailing with timestamps")
ALONE = sys.modules["vecrope.collate.number"]


def sample_of(prompt):
    """Return a prompt of one row as a sample, without what is masked."""
    types = prompt.mm_token_type_ids[kept(prompt)]
    grids = {"image_grid_thw": prompt.image_grid_thw, "video_grid_thw": prompt.video_grid_thw}
    given_grids = {name: rows for name, rows in grids.items() if rows is not None and len(rows)}
    return {"input_ids": unmasked(prompt), "mm_token_type_ids": types, **given_grids}


def assert_at_once(samples, spec, packed):
    alone = [collate([sample], spec, pad_token_id=0)["position_ids"] for sample in samples]
    with patch.object(ALONE, "number_alone", None):
        batch = collate(samples, spec, pad_token_id=0, packed=packed)["position_ids"][-3:]
    start = 0
    for row, one in enumerate(alone):
        length = one.shape[2]
        columns = slice(start, start + length) if packed else slice(length)
        start += length
        assert torch.equal(batch[:, row * (not packed), columns], one[-3:, 0])


@pytest.mark.parametrize("spec", [SPECS[name] for name in NAMES], ids=NAMES)
@given(st.data(), st.booleans())
def test_samples_of_grids(spec, data, packed):
    prompt = data.draw(conversations(spec))
    samples = [sample_of(row) for row in single_rows(prompt) if kept(row).any()]
    if samples:
        assert_at_once(samples, spec, packed)


@pytest.mark.filterwarnings("ignore:.* has layers of linear attention")
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_samples_of_crops(packed):
    samples = samples_of("minicpmv4_7", "own rule")
    assert len(samples) > 1
    assert_at_once(samples, minicpm_spec("transformers"), packed)


def test_a_neighbours_picture_is_not_taken():
    few = {"input_ids": [0, 9, 9], "image_grid_thw": [[1, 2, 4], [1, 2, 2]]}
    many = {"input_ids": [9, 0, 9, 9], "image_grid_thw": [[1, 2, 4]]}
    with pytest.raises(ValueError, match=r"^sample 0: image_grid_thw row 1 \(1, 2, 2\) is left"):
        collate([few, many], SPECS["isaac"], pad_token_id=0, packed=True)
