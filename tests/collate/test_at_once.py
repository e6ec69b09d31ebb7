"""Batches are numbered at once, but for a sample that is at fault, which is then named."""

import sys

import pytest
import torch
from oracles import spec_of

from vecrope import collate

GLM, OMNI = spec_of("glm4v", "transformers"), spec_of("qwen2_5_omni", "transformers")
QWEN = spec_of("qwen2_5_vl", "transformers")
IMAGE, BEGIN, END = GLM.image_token_id, GLM.video_start_token_id, GLM.video_end_token_id
GLM_SAMPLES = [
    {"input_ids": [1, IMAGE, IMAGE, 2], "image_grid_thw": [[1, 2, 4]]},
    {"input_ids": [BEGIN, IMAGE, 3, IMAGE, END, 4], "video_grid_thw": [[2, 2, 2]]},
    {
        "input_ids": [IMAGE, BEGIN, IMAGE, END],
        "image_grid_thw": [[1, 2, 2]],
        "video_grid_thw": [[1, 2, 2]],
    },
    {"input_ids": [5, 6]},
]
each_layout = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])


@each_layout
def test_markers_tell_pictures_and_clips_of_a_batch(packed, monkeypatch):
    alone = [collate([sample], GLM, pad_token_id=0)["position_ids"] for sample in GLM_SAMPLES]
    monkeypatch.setattr(
        sys.modules["vecrope.collate.number"], "number_alone", None
    )  # not one by one
    batch = collate(GLM_SAMPLES, GLM, pad_token_id=0, packed=packed)
    start = 0
    for row, one in enumerate(alone):
        length = one.shape[2]
        columns = slice(start, start + length) if packed else slice(length)
        start += length
        assert torch.equal(batch["position_ids"][-3:, row * (not packed), columns], one[:, 0])


@each_layout
def test_a_clip_is_not_continued_in_the_next_sample(packed):
    clip = {"input_ids": [BEGIN, IMAGE, END], "video_grid_thw": [[2, 2, 2]]}
    rest = {"input_ids": [BEGIN, IMAGE, END]}
    for samples, at in (([clip, rest], 0), ([rest, clip], 0), ([GLM_SAMPLES[0], rest, clip], 1)):
        with pytest.raises(ValueError, match=f"^sample {at}"):
            collate(samples, GLM, pad_token_id=0, packed=packed)


CLIP = {
    "input_ids": [1, QWEN.video_token_id],
    "video_grid_thw": [[1, 2, 2]],
    "pixel_values_videos": torch.ones(4, 6),
}
META = torch.ones(1, dtype=torch.bool, device="meta")
ODD = {
    "seconds of no dimension": (
        QWEN,
        {"second_per_grid_ts": torch.tensor(1.0)},
        r"second_per_grid_ts of sample 1 must have shape \(n,\), got \(\)",
    ),
    "seconds without values": (
        QWEN,
        {"second_per_grid_ts": torch.ones(1, device="meta")},
        "second_per_grid_ts of sample 1 must hold values",
    ),
    "pixels of another precision": (
        QWEN,
        {"pixel_values_videos": torch.ones(4, 6, dtype=torch.float16)},
        "pixel_values_videos of sample 1 must be torch.float32 on cpu, as those of sample 0, got "
        "torch.float16 on cpu",
    ),
    "pixels of no dimension": (
        QWEN,
        {"pixel_values_videos": torch.tensor(1.0)},
        "pixel_values_videos of sample 1 must have rows, got a single number",
    ),
    "ids beyond int64": (
        QWEN,
        {"input_ids": torch.ones(2, dtype=torch.uint64)},
        "input_ids of sample 1 must be integers, got torch.uint64",
    ),
    "sound without values": (
        OMNI,
        {"use_audio_in_video": META},
        "use_audio_in_video of sample 1 must hold values",
    ),
    "sound that is not said": (
        OMNI,
        {"use_audio_in_video": torch.ones(2, 2)},
        "use_audio_in_video of sample 1 must be a bool, or one for each of its videos, got a "
        "tensor of torch.float32",
    ),
}


@pytest.mark.parametrize(("spec", "changes", "message"), ODD.values(), ids=ODD.keys())
def test_odd_values_are_named(spec, changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        collate([CLIP, {**CLIP, **changes}], spec, pad_token_id=0)
