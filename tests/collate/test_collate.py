"""`collate`: batches by hand, and equal to the samples one by one."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import spec_of, transformers_rope_index
from packings import sequences
from support import assert_same, at_most
from torch.utils.data import DataLoader

from tests.collate.samples import IMAGE, QWEN, SAMPLES
from vecrope import collate, get_rope_index
from vecrope.testing import Prompt

SPECS = {
    "glm4v-transformers": spec_of("glm4v", "transformers"),
    "glm4v-sglang": spec_of("glm4v", "sglang"),
    "qwen2_vl-transformers": QWEN,
    "qwen3_vl-vllm": spec_of("qwen3_vl", "vllm"),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def listed(batch):
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


# By hand


def test_padded():
    batch = collate(SAMPLES, QWEN, pad_token_id=3, pad_to_multiple_of=3)
    assert listed(batch) == {
        "input_ids": [[7, IMAGE, IMAGE, 8, 3, 3], [5, 6, 3, 3, 3, 3]],
        "labels": [[7, 1, 1, 8, -100, -100], [5, 6, -100, -100, -100, -100]],
        "attention_mask": [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]],
        "image_grid_thw": [[1, 2, 4]],
        "position_ids": [
            [[0, 1, 1, 3, 0, 0], [0, 1, 0, 0, 0, 0]],
            [[0, 1, 1, 3, 0, 0], [0, 1, 0, 0, 0, 0]],
            [[0, 1, 2, 3, 0, 0], [0, 1, 0, 0, 0, 0]],
        ],
        "rope_deltas": [[0], [0]],
    }


def test_padded_on_the_left_with_the_text_row():
    batch = collate(
        SAMPLES,
        QWEN,
        pad_token_id=3,
        padding_side="left",
        pad_to_multiple_of=5,
        text_positions=True,
    )
    assert batch["input_ids"].tolist() == [[3, 7, IMAGE, IMAGE, 8], [3, 3, 3, 5, 6]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 7, 1, 1, 8], [-100, -100, -100, 5, 6]]
    assert batch["position_ids"][:, 0].tolist() == [
        [0, 0, 1, 2, 3],
        [0, 0, 1, 1, 3],
        [0, 0, 1, 1, 3],
        [0, 0, 1, 2, 3],
    ]


def test_packed():
    batch = collate(SAMPLES, QWEN, pad_token_id=3, packed=True, pad_to_multiple_of=4)
    assert listed(batch) == {
        "input_ids": [[7, IMAGE, IMAGE, 8, 5, 6, 3, 3]],
        "labels": [[-100, 1, 1, 8, -100, 6, -100, -100]],
        "image_grid_thw": [[1, 2, 4]],
        "position_ids": [
            [[0, 1, 2, 3, 0, 1, 0, 1]],
            [[0, 1, 1, 3, 0, 1, 0, 0]],
            [[0, 1, 1, 3, 0, 1, 0, 0]],
            [[0, 1, 2, 3, 0, 1, 0, 0]],
        ],
        "rope_deltas": [[0], [0]],
        "cu_seq_lens_q": [0, 4, 6, 8],
        "cu_seq_lens_k": [0, 4, 6, 8],
        "max_length_q": 4,
        "max_length_k": 4,
        "use_cache": False,
    }


def test_packed_without_the_text_row():
    batch = collate(SAMPLES, QWEN, pad_token_id=3, packed=True, text_positions=False)
    assert batch["position_ids"].shape == (3, 1, 6)


def test_samples_as_processors_give_them():
    kinds = (
        lambda values: values,
        np.asarray,
        torch.tensor,
        lambda values: torch.tensor([values]),
        lambda values: torch.tensor(values, dtype=torch.int32),
    )
    answers = []
    for kind in kinds:
        samples = [
            {
                "input_ids": kind([7, IMAGE, IMAGE]),
                "attention_mask": kind([1, 1, 1]),
                "mm_token_type_ids": kind([0, 1, 1]),
                "image_grid_thw": torch.tensor([[1, 2, 4]]),
                "video_grid_thw": None,
                "pixel_values": torch.ones((8, 3)),
            },
            {
                "input_ids": kind([5, 6]),
                "attention_mask": kind([1, 1]),
                "mm_token_type_ids": kind([0, 0]),
                "image_grid_thw": [],
            },
        ]
        answers.append(collate(samples, QWEN, pad_token_id=0))
    for answer in answers:
        assert answer.keys() == answers[0].keys()
        assert "video_grid_thw" not in answer
        assert answer["pixel_values"].shape == (8, 3)
        assert all(torch.equal(answer[name], value) for name, value in answers[0].items())


@pytest.mark.parametrize("kind", [list, torch.tensor], ids=["list", "tensor"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_seconds_stay_of_their_type(kind, packed):
    spec = spec_of("qwen2_5_vl", "transformers")
    video = spec.video_token_id
    samples = [
        {
            "input_ids": [7, video, video, 8],
            "video_grid_thw": [[2, 2, 2]],
            "second_per_grid_ts": kind([seconds]),
        }
        for seconds in (0.5, 1.0)
    ]
    batch = collate(samples, spec, pad_token_id=0, packed=packed)
    assert type(batch["second_per_grid_ts"]) is type(kind([0.5]))
    assert list(batch["second_per_grid_ts"]) == [0.5, 1.0]
    times = batch["position_ids"][-3].flatten().tolist()
    assert times == [0, 1, 3, 2, 0, 1, 5, 2]


def test_samples_are_left_as_they_are():
    ids = torch.tensor([7, 8])
    collate([{"input_ids": ids, "labels": ids}], QWEN, pad_token_id=0, packed=True)
    assert ids.tolist() == [7, 8]


def test_the_grids_of_each_sample_are_counted_where_a_family_asks():
    spec = spec_of("glm_image", "transformers")
    rule, image = spec.own_rule, spec.image_token_id
    start, end = rule.image_start_token_id, rule.image_end_token_id
    with_source = {
        "input_ids": [7, start, image, image, end, 8, start],
        "image_grid_thw": [[1, 1, 2], [1, 4, 4]],
    }
    samples = [{"input_ids": [7, 8]}, with_source, with_source]
    batch = collate(samples, spec, pad_token_id=0)
    assert batch["images_per_sample"].tolist() == [0, 2, 2]
    for row, sample in enumerate(samples):
        alone = collate([sample], spec, pad_token_id=0)["position_ids"]
        assert torch.equal(batch["position_ids"][:, row, : alone.shape[-1]], alone[:, 0])


# Equal to one by one, and to transformers


def sample_of(prompt):
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    grids = {name: getattr(prompt, name) for name in names}
    return {"input_ids": prompt.input_ids[0], **grids}


@each_spec
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@given(data=st.data())
@at_most(10)
def test_a_batch_is_the_samples_one_by_one(packed, spec, data):
    prompts = data.draw(st.lists(sequences(spec), min_size=1, max_size=4))
    side = data.draw(st.sampled_from(["left", "right"]))
    samples = [sample_of(prompt) for prompt in prompts]
    multiple = data.draw(st.sampled_from([None, 4]))
    batch = collate(
        samples,
        spec,
        pad_token_id=0,
        packed=packed,
        padding_side=side,
        pad_to_multiple_of=multiple,
    )
    assert batch["input_ids"].shape[1] % (multiple or 1) == 0
    start = 0
    for index, prompt in enumerate(prompts):
        ids = prompt.input_ids
        want = get_rope_index(
            ids, spec, image_grid_thw=prompt.image_grid_thw, video_grid_thw=prompt.video_grid_thw
        )
        length = ids.shape[1]
        if packed:
            row, columns = 0, slice(start, start + length)
            start += length
        else:
            row, columns = index, batch["attention_mask"][index].bool()
        got = batch["position_ids"][-3:, row, columns]
        assert torch.equal(batch["input_ids"][row, columns], ids[0])
        assert torch.equal(got, want[0][:, 0])
        if packed or spec.delta_length == "valid":
            assert torch.equal(batch["rope_deltas"][index], want[1][0])


@given(prompts=st.lists(sequences(QWEN, hostile=False), min_size=1, max_size=4))
@at_most(25)
def test_a_padded_batch_is_numbered_as_transformers_does(prompts):
    batch = collate([sample_of(prompt) for prompt in prompts], QWEN, pad_token_id=0)
    types = torch.zeros_like(batch["input_ids"])
    types[batch["input_ids"] == QWEN.image_token_id] = 1
    types[batch["input_ids"] == QWEN.video_token_id] = 2
    whole = replace(
        prompts[0],
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        mm_token_type_ids=types,
        image_grid_thw=batch.get("image_grid_thw"),
        video_grid_thw=batch.get("video_grid_thw"),
    )
    got = batch["position_ids"], batch["rope_deltas"]
    assert_same(got, transformers_rope_index(whole))


# As collators of training frameworks call a model's function


each_call = pytest.mark.parametrize("framework", ["LLaMA-Factory", "verl", "TRL"])


@each_call
def test_the_calls_of_training_frameworks(framework):
    """By keyword and in a batch: of all samples, of one, and of one with the text row in front."""
    function = partial(get_rope_index, spec=QWEN)
    prompt = Prompt.from_symbols(
        QWEN, ["tt<IIII>t", "t<II>tttt"], mask=[*["111111111", "011111100"][:1], "111111100"],
        image_grid_thw=[[1, 4, 4], [1, 2, 4]],
    )  # fmt: skip
    want = transformers_rope_index(prompt)
    if framework == "LLaMA-Factory":
        got = function(
            input_ids=prompt.input_ids,
            image_grid_thw=prompt.image_grid_thw,
            video_grid_thw=None,
            attention_mask=prompt.attention_mask >= 1,
        )
        assert_same(got, want)
        return
    for row in range(2):
        arguments = {
            "input_ids": prompt.input_ids[row : row + 1],
            "image_grid_thw": prompt.image_grid_thw[row : row + 1],
            "video_grid_thw": None,
            "attention_mask": prompt.attention_mask[row : row + 1],
        }
        if framework == "TRL":
            arguments["mm_token_type_ids"] = prompt.mm_token_type_ids[row : row + 1]
        got, _ = function(**arguments, text_positions=framework == "verl")
        assert torch.equal(got[-3:, 0], want[0][:, row])
        if framework == "verl":
            text = arguments["attention_mask"].cumsum(1) - 1
            assert torch.equal(got[0], text * arguments["attention_mask"])


def test_in_the_workers_of_a_data_loader():
    collate_fn = partial(collate, spec=QWEN, pad_token_id=0, packed=True)
    (batch,) = DataLoader(SAMPLES, batch_size=2, num_workers=1, collate_fn=collate_fn)
    want = collate_fn(SAMPLES)
    assert listed(batch) == listed(want)
