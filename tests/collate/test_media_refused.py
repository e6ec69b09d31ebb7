"""What `collate` refuses of the media of a sample."""

import pytest
import torch
from oracles import spec_of

from tests.collate.samples import IMAGE, QWEN
from vecrope import collate, dummy_image, truncate

OMNI = spec_of("qwen3_omni_moe", "transformers")
GLM_IMAGE = spec_of("glm_image", "transformers")
PICTURE = {"input_ids": [IMAGE], "image_grid_thw": [[1, 2, 2]]}
SPEECH = {"input_ids": [5], "feature_attention_mask": torch.ones(1, 30, dtype=torch.int64)}
REFUSED = {
    "pixels of integers": (
        QWEN,
        PICTURE | {"pixel_values": torch.ones(4, 8, dtype=torch.int64)},
        "pixel_values of sample 0 must be floating-point numbers, got torch.int64",
    ),
    "grids of floats": (
        QWEN,
        PICTURE | {"image_grid_thw": [[1.0, 2.0, 2.0]]},
        "image_grid_thw of sample 0 must be integers, got torch.float32",
    ),
    "pixels of another picture": (
        QWEN,
        PICTURE | {"pixel_values": torch.ones(3, 8)},
        "pixel_values of sample 0 must have 4 rows, the patches of its image_grid_thw, got 3",
    ),
    "a number of grids that are not there": (
        GLM_IMAGE,
        {"input_ids": [5], "images_per_sample": [1]},
        "images_per_sample of sample 0 must be the 0 rows of its image_grid_thw, got 1",
    ),
    "seconds twice": (
        OMNI,
        {
            "input_ids": [5],
            "video_grid_thw": [[1, 2, 2]],
            "second_per_grid_ts": [1.0],
            "video_second_per_grid": [1.0],
        },
        "sample 0 has second_per_grid_ts and video_second_per_grid, which are the same",
    ),
    "features of one audio without their dimension": (
        OMNI,
        SPEECH | {"input_features": torch.ones(128, 30)},
        r"input_features of sample 0 must have shape \(num_audios, mel_bins, frames\)",
    ),
    "a mask of another number of audios": (
        OMNI,
        SPEECH | {"input_features": torch.ones(2, 128, 30)},
        "must have one row for each audio, got 2 in input_features, 1 in feature_attention_mask",
    ),
    "a mask of other frames": (
        OMNI,
        SPEECH | {"input_features": torch.ones(1, 128, 20)},
        "feature_attention_mask of sample 0 must have the 20 frames of its input_features, got 30",
    ),
    "sound of a family without": (
        QWEN,
        {"input_ids": [5], "use_audio_in_video": True},
        "use_audio_in_video of sample 0 must be False: qwen2_vl does not take audio",
    ),
}


@pytest.mark.parametrize(("spec", "sample", "message"), REFUSED.values(), ids=REFUSED)
def test_media_are_refused(spec, sample, message):
    with pytest.raises((TypeError, ValueError), match=message):
        collate([sample], spec, pad_token_id=0)


def test_extras_of_unlike_shapes_are_not_stacked():
    samples = [{"input_ids": [5], "weight": torch.ones(size)} for size in (2, 3)]
    with pytest.raises(ValueError, match=r"weight of sample 1 must have shape \(2,\)"):
        collate(samples, QWEN, pad_token_id=0, extra="stack")


@pytest.mark.parametrize(
    "call",
    [lambda spec: dummy_image(spec, 8), lambda spec: truncate(PICTURE, spec, 1)],
    ids=["dummy_image", "truncate"],
)
def test_a_spec_is_asked_for(call):
    with pytest.raises(TypeError, match="spec must be an MRopeSpec, got '"):
        call("qwen2_vl")


def test_a_batch_of_one_and_its_grids_are_a_sample():
    sample = {"input_ids": [[IMAGE]], "image_grid_thw": torch.tensor([[[1, 2, 2]]])}
    batch = collate([sample], QWEN, pad_token_id=0)
    assert batch["image_grid_thw"].tolist() == [[1, 2, 2]]
