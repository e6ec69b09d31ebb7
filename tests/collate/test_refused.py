"""What `collate` refuses."""

import pytest
import torch
from oracles import spec_of

from tests.collate.samples import IMAGE, QWEN, SAMPLES
from vecrope import collate

# Refused


def changed(index, **changes):
    samples = [dict(sample) for sample in SAMPLES]
    samples[index].update(changes)
    return samples


SECONDS = spec_of("qwen2_5_vl", "transformers")
VIDEO = {"input_ids": [SECONDS.video_token_id], "video_grid_thw": [[1, 2, 2]]}
REFUSED = {
    "no samples": ([], {}, ValueError, "samples must hold at least one sample, got none"),
    "an unknown name": (
        changed(1, prompt="hi", label=[1]),
        {},
        TypeError,
        "sample 1 has label, prompt, which are none of input_ids, labels",
    ),
    "no ids": ([{"labels": [1]}], {}, ValueError, "sample 0 has no input_ids"),
    "labels of some": (
        changed(1, labels=None),
        {},
        ValueError,
        "sample 1 has no labels, sample 0 has: all samples must have them, or none",
    ),
    "no token": (
        changed(0, input_ids=[]),
        {},
        ValueError,
        r"input_ids of sample 0 must have shape \(T,\) or \(1, T\) of at least one token, got "
        r"\(0,\)",
    ),
    "a batch of two": (
        changed(0, input_ids=[[1], [2]]),
        {},
        ValueError,
        r"input_ids of sample 0 must have shape .* got \(2, 1\)",
    ),
    "labels of another length": (
        changed(1, labels=[1, 2, 3]),
        {},
        ValueError,
        "labels of sample 1 must have the 2 tokens of its input_ids, got 3",
    ),
    "ids that are no integers": (
        changed(1, input_ids=[1.0, 2.0]),
        {},
        TypeError,
        "input_ids of sample 1 must be integers, got torch.float32",
    ),
    "padding to be packed": (
        [{"input_ids": [1, 2], "attention_mask": [1, 0]}],
        {"packed": True},
        ValueError,
        "attention_mask of sample 0 must be 1 at every token to be packed",
    ),
    "another side": (
        SAMPLES,
        {"padding_side": "top"},
        ValueError,
        "padding_side must be 'left' or 'right', got 'top'",
    ),
    "no multiple": (
        SAMPLES,
        {"pad_to_multiple_of": 0},
        ValueError,
        "pad_to_multiple_of must be at least 1, got 0",
    ),
    "seconds of two types": (
        [
            {**VIDEO, "second_per_grid_ts": [1.0]},
            {**VIDEO, "second_per_grid_ts": torch.tensor([1.0])},
        ],
        {"spec": SECONDS},
        TypeError,
        "second_per_grid_ts must be tensors of one dtype in all samples, or lists in all; got a "
        "list in sample 0 and a tensor of torch.float32 in sample 1",
    ),
    "seconds of two dtypes": (
        [
            {**VIDEO, "second_per_grid_ts": torch.tensor([1.0])},
            {**VIDEO, "second_per_grid_ts": torch.tensor([1.0], dtype=torch.float16)},
        ],
        {"spec": SECONDS},
        TypeError,
        "got a tensor of torch.float32 in sample 0 and a tensor of torch.float16 in sample 1",
    ),
    "positions that are fractions": (
        [{"input_ids": [1, 2], "position_ids": torch.ones(3, 2), "rope_deltas": [[0]]}],
        {},
        TypeError,
        "position_ids of sample 0 must be integers, got torch.float32",
    ),
    "a delta that is a fraction": (
        [
            {
                "input_ids": [1, 2],
                "position_ids": torch.ones(3, 2, dtype=torch.int64),
                "rope_deltas": [[0.5]],
            }
        ],
        {},
        TypeError,
        "rope_deltas of sample 0 must be integers, got torch.float32",
    ),
    "seconds of some": (
        [{**VIDEO, "second_per_grid_ts": [1.0]}, VIDEO],
        {"spec": SECONDS},
        ValueError,
        "sample 1 has no second_per_grid_ts, sample 0 has: all samples must have them, or none",
    ),
    "a truncated sample": (
        changed(0, input_ids=[7, IMAGE], labels=[7, 1]),
        {"packed": True},
        ValueError,
        "sample 0, image 0: .* was the prompt truncated inside the image?",
    ),
}


@pytest.mark.parametrize(
    ("samples", "options", "error", "message"), REFUSED.values(), ids=REFUSED.keys()
)
def test_refused(samples, options, error, message):
    with pytest.raises(error, match=message):
        collate(samples, **{"spec": QWEN, "pad_token_id": 0, **options})
