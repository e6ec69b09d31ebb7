"""Samples that bring their positions, by how conventions number padding."""

import sys

import pytest
import torch
from oracles import spec_of
from support import assert_same

from vecrope import collate, get_rope_index, truncate

FAMILIES = {"valid lengths": ("glm4v", "transformers"), "padded lengths": ("glm4v", "sglang")}


def samples_of(spec):
    image = spec.image_token_id
    return [
        {"input_ids": [7, image, image, 8], "image_grid_thw": [[1, 2, 4]]},
        {"input_ids": [5, image], "image_grid_thw": [[1, 2, 2]]},
    ]


def numbered(spec):
    return [collate([sample], spec, pad_token_id=0) for sample in samples_of(spec)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_padded_batch_is_that_of_samples_without_positions(family, side, monkeypatch):
    spec = spec_of(*family)
    want = collate(samples_of(spec), spec, pad_token_id=0, padding_side=side)
    samples = numbered(spec)
    monkeypatch.setattr(sys.modules["vecrope.collate.number"], "rope_index_of", None)
    got = collate(samples, spec, pad_token_id=0, padding_side=side)
    for name in ("position_ids", "rope_deltas"):
        assert torch.equal(got[name], want[name])


@pytest.mark.parametrize("lengths", [(1, 4), (1, 2), (3, 1, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("model_type", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_padding_of_an_omni_batch_without_pictures_counts_as_a_position(model_type, lengths):
    spec = spec_of(model_type, "transformers")
    samples = [{"input_ids": [7] * length} for length in lengths]
    numbered = [collate([sample], spec, pad_token_id=0) for sample in samples]
    want = collate(samples, spec, pad_token_id=0, pad_to_multiple_of=2)
    got = collate(numbered, spec, pad_token_id=0, pad_to_multiple_of=2)
    assert_same(
        [got[name] for name in ("position_ids", "rope_deltas")],
        [want[name] for name in ("position_ids", "rope_deltas")],
    )
    image = [spec.vision_start_token_id, spec.image_token_id, 8]
    samples[0] = {"input_ids": image, "image_grid_thw": [[1, 2, 2]]}
    numbered[0] = collate(samples[:1], spec, pad_token_id=0)
    of_image = [collate(batch, spec, pad_token_id=0) for batch in (numbered, samples)]
    assert_same(
        *([batch[n].float() for n in ("position_ids", "rope_deltas")] for batch in of_image)
    )
    prompt = torch.ones_like(want["input_ids"]), want["attention_mask"]
    assert_same(
        [want["position_ids"], want["rope_deltas"]],
        get_rope_index(prompt[0], spec, attention_mask=prompt[1]),
    )


def test_positions_are_not_padded_where_padding_is_numbered():
    spec = spec_of("qwen2_vl", "sglang")
    with pytest.raises(ValueError, match="qwen2_vl under convention 'sglang' numbers padding"):
        collate([collate([{"input_ids": [5, 6]}], spec, pad_token_id=0)], spec, pad_token_id=0)


def test_positions_stay_with_a_sample_of_which_nothing_is_cut():
    spec = spec_of(*FAMILIES["padded lengths"])
    for sample in numbered(spec):
        (whole, dropped), (cut, _) = truncate(sample, spec, 4), truncate(sample, spec, 1)
        assert (dropped.tokens, dropped.images) == (0, 0)
        for name in ("position_ids", "rope_deltas"):
            assert torch.equal(whole[name].flatten(), sample[name].flatten())
        assert not {"position_ids", "rope_deltas"} & cut.keys()


@pytest.mark.parametrize(
    ("packed", "mask", "message"),
    [
        (False, [1, 2], "attention_mask of sample 1 must hold 0 or 1, got 2 at most and 1 at"),
        (False, [-1, 1], "attention_mask of sample 1 must hold 0 or 1, got 1 at most and -1"),
        (True, [0, 1], "attention_mask of sample 1 must be 1 at every token to be packed"),
    ],
)
def test_the_sample_whose_mask_is_wrong_is_named(packed, mask, message):
    spec = spec_of(*FAMILIES["valid lengths"])
    samples = samples_of(spec)
    for sample, given in zip(samples, ([1] * 4, mask), strict=True):
        sample["attention_mask"] = given
    with pytest.raises(ValueError, match=message):
        collate(samples, spec, pad_token_id=0, packed=packed)
