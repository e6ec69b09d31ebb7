"""Odd values in a sample or an argument: who is at fault is named, in the library's own words."""

import pytest
import torch
from oracles import spec_of

from vecrope import collate, dummy_image, shard_batch, truncate

SPEC, OMNI = spec_of("qwen2_5_vl", "transformers"), spec_of("qwen2_5_omni", "transformers")
IMAGE = SPEC.image_token_id
TEXT = {"input_ids": [1, 2]}
PICTURE = {"input_ids": [1, IMAGE, IMAGE, 2], "image_grid_thw": [[1, 2, 4]]}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_a_sample_is_not_called_a_row_of_a_batch(packed):
    types = {**TEXT, "mm_token_type_ids": [0, 7]}
    message = r"^sample 1, token 1: mm_token_type_ids must hold 0 or 1 or 2, got 7$"
    with pytest.raises(ValueError, match=message):
        collate([{**TEXT, "mm_token_type_ids": [0, 0]}, types], SPEC, pad_token_id=0, packed=packed)
    picture = {"input_ids": [1, OMNI.vision_start_token_id, OMNI.image_token_id, 2]}
    message = r"^sample 1: image_grid_thw must be given for its image, got None$"
    with pytest.raises(ValueError, match=message):
        collate([TEXT, picture], OMNI, pad_token_id=0, packed=packed)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, device="meta"), "hold values, .* on the meta device"),
        (torch.ones(2).to_sparse(), "be a dense tensor, got one of layout torch.sparse_coo"),
        ([[1], [2, 3]], "be a tensor, an array or a list of numbers"),
    ],
    ids=["meta", "sparse", "ragged"],
)
def test_what_cannot_be_stacked(value, message):
    samples = [{**TEXT, "score": torch.ones(2)}, {**TEXT, "score": value}]
    with pytest.raises((TypeError, ValueError), match=f"score of sample 1 must {message}.*'list'"):
        collate(samples, SPEC, pad_token_id=0, extra="stack")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (5, "must be a sequence of ints, got 5"),
        ("ab", "must be a sequence of ints, got 'ab'"),
        ([1.5], "must be an int, got 1.5"),
        ([2**70], r"must be less than 2\*\*63"),
    ],
)
def test_markers_that_are_no_ids(ids, message):
    with pytest.raises((TypeError, ValueError), match=f"start_token_ids {message}"):
        dummy_image(SPEC, 6, start_token_ids=ids)
    with pytest.raises((TypeError, ValueError), match=f"end_token_ids {message}"):
        truncate(PICTURE, SPEC, 2, end_token_ids=ids)


def test_a_patch_has_a_size():
    with pytest.raises(TypeError, match="pixel_features must be an int, got None"):
        dummy_image(SPEC, [])


@pytest.mark.parametrize("batch", [None, [], {}, {"input_ids": [1]}, {"input_ids": torch.ones(2)}])
def test_what_is_no_batch(batch):
    with pytest.raises(TypeError, match="batch must be what collate returns"):
        shard_batch(batch, 0, 2)
