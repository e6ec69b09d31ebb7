"""Pictures of families with a rule of their own go with the cut, and rows of zeros with none."""

import pytest
import torch
from oracles import spec_of
from own_support import SPECS, SYMBOLS

from tests.collate.samples import IMAGE, QWEN
from vecrope import truncate


def ids_of(row):
    return [SYMBOLS[symbol] for symbol in row]


@pytest.mark.parametrize(
    ("max_length", "tokens", "images"), [(12, 12, 2), (11, 8, 1), (7, 7, 1), (6, 1, 0)]
)
def test_a_run_is_a_picture_of_hunyuan_vl(max_length, tokens, images):
    spec = SPECS["hunyuan_vl of 3 axes"]
    # Two rows of a token and a newline each, with a token at both ends or without.
    row = ids_of("tIIIIII" + "tIIII")
    sample = {"input_ids": row, "image_grid_thw": [[1, 4, 2], [1, 4, 2]]}
    got, dropped = truncate(sample, spec, max_length)
    assert len(got["input_ids"]) == tokens
    assert dropped.images == 2 - images
    assert len(got.get("image_grid_thw", [])) == images


def test_images_of_an_omni_sample_without_sound():
    spec = spec_of("qwen2_5_omni", "transformers")
    row = [7, spec.vision_start_token_id, spec.image_token_id, spec.image_token_id, 8]
    sample = {"input_ids": row, "image_grid_thw": [[1, 2, 4]]}
    for max_length, images in ((4, 1), (3, 0)):
        got, dropped = truncate(sample, spec, max_length)
        assert (len(got["input_ids"]), dropped.images) == (1 + 3 * images, 1 - images)


def test_a_row_of_zeros_is_never_dropped():
    sample = {"input_ids": [7, IMAGE, 8], "image_grid_thw": torch.tensor([[0, 0, 0], [1, 2, 2]])}
    got, dropped = truncate(sample, QWEN, 1)
    assert (got["input_ids"].tolist(), dropped.images) == ([7], 1)
    assert got["image_grid_thw"].tolist() == [[0, 0, 0]]
