"""Boundaries, layouts, samples that are numbered already, and a picture for those without."""

import sys

import pytest
import torch
from own_support import SPECS
from tiny_models import tiny_model
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from tests.collate.model_samples import samples_of
from tests.collate.samples import QWEN, SAMPLES
from vecrope import (
    MRopeSpec,
    collate,
    dummy_image,
    sequence_ids_from_position_ids,
    shard_batch,
    shard_indices,
)


def test_padding_behind_packed_samples_is_one_sequence():
    batch = collate(SAMPLES, QWEN, pad_token_id=0, packed=True, pad_to_multiple_of=4096)
    (bounds, _), (longest, _) = prepare_fa_kwargs_from_position_ids(batch["position_ids"][0])
    assert torch.equal(bounds, batch["cu_seq_lens_q"])
    assert bounds.tolist() == [0, 4, 6, 4096]
    assert longest == batch["max_length_q"] == 4090
    assert sequence_ids_from_position_ids(batch["position_ids"]).unique().tolist() == [1, 2, 3]
    assert batch["rope_deltas"].shape == (2, 1)


def test_bounds_are_those_of_transformers_own_collator():
    from transformers import DataCollatorWithFlattening

    theirs = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)(
        [{name: sample[name] for name in ("input_ids", "labels")} for sample in SAMPLES]
    )
    ours = collate(SAMPLES, QWEN, pad_token_id=0, packed=True, return_seq_idx=True)
    theirs["position_ids"] = theirs["position_ids"][None]
    ours["position_ids"] = ours["position_ids"][:1]
    for name, value in theirs.items():
        assert type(ours[name]) is type(value)
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype
            assert torch.equal(ours[name], value)
        else:
            assert ours[name] == value


def test_bounds_can_be_left_out():
    batch = collate(SAMPLES, QWEN, pad_token_id=0, packed=True, return_flash_attn_kwargs=False)
    assert not {"cu_seq_lens_q", "max_length_q", "seq_idx"} & batch.keys()
    assert batch["use_cache"] is False
    without = collate(SAMPLES, QWEN, pad_token_id=0, packed=True, return_use_cache=False)
    assert "use_cache" not in without


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_rows_in_front(packed):
    options = {"pad_token_id": 0, "packed": packed, "text_positions": True}
    batch = collate(SAMPLES, QWEN, **options)
    rows = collate(SAMPLES, QWEN, **options, batch_first=True)
    assert torch.equal(rows["position_ids"].transpose(0, 1), batch["position_ids"])


@pytest.mark.parametrize("rows", [False, True], ids=["axes", "rows"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("text", [False, True], ids=["three", "four"])
def test_a_batch_of_one_is_a_sample_that_is_numbered(packed, rows, text, monkeypatch):
    options = {"pad_token_id": 0, "packed": packed, "pad_to_multiple_of": 3}
    want = collate(SAMPLES, QWEN, **options)
    numbered = [
        collate([sample], QWEN, pad_token_id=0, batch_first=rows, text_positions=text)
        for sample in SAMPLES
    ]
    # Not called again.
    monkeypatch.setattr(sys.modules["vecrope.collate.number"], "rope_index_of", None)
    got = collate(numbered, QWEN, **options)
    assert got.keys() == want.keys()
    assert torch.equal(got["position_ids"], want["position_ids"])
    assert torch.equal(got["rope_deltas"], want["rope_deltas"])


def test_numbered_samples_are_refused():
    (numbered,) = (collate(SAMPLES[:1], QWEN, pad_token_id=0),)
    for change, message in (
        ({"position_ids": numbered["position_ids"][..., 1:]}, r"shape \(3, 4\), \(3, 1, 4\) or"),
        ({"rope_deltas": None}, "sample 0 has position_ids and no rope_deltas"),
        ({"rope_deltas": [1, 2]}, r"rope_deltas of sample 0 must have shape \(1, 1\), got \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            collate([{**numbered, **change}], QWEN, pad_token_id=0)
    with pytest.raises(ValueError, match="sample 1 has no position_ids, sample 0 has"):
        collate([numbered, SAMPLES[1]], QWEN, pad_token_id=0)


# A picture for batches without any


def text_samples():
    return [
        {"input_ids": [20 + token for token in range(length)], "labels": [20] * length}
        for length in (3, 5)
    ]


def outcome(model, batch):
    """Return the logits of real tokens, the loss, and the gradients."""
    model.zero_grad()
    answer = model(**{**batch, "use_cache": False})
    answer.loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    return answer.logits, answer.loss, gradients


@pytest.mark.parametrize("side", ["left", "right", "packed"])
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl"])
def test_a_dummy_image_changes_nothing(model_type, side):
    model = tiny_model(model_type)
    spec = MRopeSpec.from_config(model.config, convention="transformers")
    features = samples_of(model_type, "images")[0]["pixel_values"].shape[1]
    dummy = dummy_image(spec, features, start_token_ids=[11], end_token_ids=[12])
    options = {"packed": True} if side == "packed" else {"padding_side": side}
    samples = [
        {**sample, "mm_token_type_ids": [0] * len(sample["labels"])} for sample in text_samples()
    ]
    plain = collate(samples, spec, pad_token_id=0, **options)
    batch = collate(samples, spec, pad_token_id=0, dummy_image=dummy, **options)
    assert int((batch["input_ids"] == spec.image_token_id).sum()) == 1
    shown = batch["labels"] != -100
    want = outcome(model, plain)
    got = outcome(model, batch)
    torch.testing.assert_close(got[0][shown], want[0][plain["labels"] != -100])
    torch.testing.assert_close(got[1], want[1])
    for name, gradient in got[2].items():
        if "visual" in name:  # it has run, and learns nothing
            assert gradient is None or not gradient.any()
        else:
            torch.testing.assert_close(gradient, want[2][name], rtol=1e-5, atol=1e-6)
    assert any(gradient is not None for name, gradient in got[2].items() if "visual" in name)
    real = batch["labels"][batch["labels"] != -100]
    assert torch.equal(real, plain["labels"][plain["labels"] != -100])
    assert batch["rope_deltas"].shape == plain["rope_deltas"].shape


def test_a_dummy_image_is_left_out_where_there_is_a_picture():
    dummy = dummy_image(QWEN, 6)
    batch = collate(SAMPLES, QWEN, pad_token_id=0, dummy_image=dummy)
    assert torch.equal(batch["input_ids"], collate(SAMPLES, QWEN, pad_token_id=0)["input_ids"])


def test_dummy_images_are_refused():
    with pytest.raises(ValueError, match="dummy_image does not take isaac: transformers has no"):
        dummy_image(SPECS["isaac"], 6)
    with pytest.raises(ValueError, match="pixel_features must be at least 1, got 0"):
        dummy_image(QWEN, 0)
    for too_large in (2**40, (2**20, 2**20)):
        with pytest.raises(ValueError, match=r"pixel_features must make .* than 2\*\*31 numbers"):
            dummy_image(QWEN, too_large)


# Context parallelism


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "zigzag_sequences"])
def test_shards_are_the_whole(layout, world_size):
    each = 2 * world_size
    batch = collate(
        SAMPLES, QWEN, pad_token_id=3, packed=True, pad_to_multiple_of=3 * each,
        pad_sequences_to_multiple_of=each,
    )  # fmt: skip
    assert batch["cu_seqlens_q"].tolist() == [0, 4, 6, 6 + each]
    assert batch["cu_seqlens_q_padded"].tolist() == [0, each, 2 * each, 3 * each]
    assert batch["labels"][0, each : each + 2].tolist() == [-100, 6]
    length = batch["input_ids"].shape[1]
    order = torch.cat(
        [
            shard_indices(
                length, rank, world_size, layout,
                cu_seqlens=batch["cu_seq_lens_q"] if layout == "zigzag_sequences" else None,
            )
            for rank in range(world_size)
        ]
    )  # fmt: skip
    assert order.sort().values.tolist() == list(range(length))
    shards = [shard_batch(batch, rank, world_size, layout) for rank in range(world_size)]
    for name in ("input_ids", "labels", "position_ids"):
        gathered = torch.cat([shard[name] for shard in shards], -1)
        assert torch.equal(gathered, batch[name][..., order])
    following = torch.cat([shard["shift_labels"] for shard in shards], -1)
    labels = torch.cat((batch["labels"][0], torch.tensor([-100])))
    assert torch.equal(following[0], labels[order + 1])
    if layout == "zigzag_sequences":
        for shard in shards:
            assert shard["cu_seq_lens_q"].tolist() == [0, 2, 4, 6]
            assert shard["max_length_q"] == 2


def test_zigzag_within_sequences_by_hand():
    bounds = torch.tensor([0, 4, 12])
    got = [shard_indices(12, rank, 2, "zigzag_sequences", cu_seqlens=bounds) for rank in (0, 1)]
    assert [shard.tolist() for shard in got] == [[0, 3, 4, 5, 10, 11], [1, 2, 6, 7, 8, 9]]
    for arguments, message in (
        ({}, "cu_seqlens must be given in the 'zigzag_sequences' layout"),
        ({"cu_seqlens": torch.tensor([0, 6, 12])}, "sequence 0 must have a multiple of 4 tokens"),
        ({"cu_seqlens": torch.tensor([0, 4])}, "cu_seqlens must run from 0 to the number"),
    ):
        with pytest.raises(ValueError, match=message):
            shard_indices(12, 0, 2, "zigzag_sequences", **arguments)
    with pytest.raises(TypeError, match=r"seq_len must be an int, got 4\.0"):
        shard_indices(4.0, 0, 2)


def test_a_batch_without_labels_has_shards_without():
    batch = collate([{"input_ids": [1, 2, 3, 4]}], QWEN, pad_token_id=0)
    shard = shard_batch(batch, 1, 2, "contiguous")
    assert shard["input_ids"].tolist() == [[3, 4]]
    assert not {"labels", "shift_labels"} & shard.keys()
