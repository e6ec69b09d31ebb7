"""No sample's fault is accepted because of another, or blamed on it."""

import pytest
import torch
from oracles import spec_of

from vecrope import collate

SPEC = spec_of("qwen2_5_vl", "transformers")
GLM = spec_of("glm4v", "transformers")
IMAGE, VIDEO = SPEC.image_token_id, SPEC.video_token_id
GLM_IMAGE, BEGIN, END = GLM.image_token_id, GLM.video_start_token_id, GLM.video_end_token_id
GRID = [[1, 2, 4]]
SOUND = {"input_ids": [1, IMAGE, IMAGE, 2], "image_grid_thw": GRID}
TEXT = {"input_ids": [1, 2]}
CLIP = {"input_ids": [1, VIDEO, VIDEO, 2], "video_grid_thw": GRID}
PATCHES = torch.ones((8, 6))

# The faulty sample, what stands beside it, and the message from the sample's number on.
FAULTS = {
    "a grid too many": (
        {"input_ids": [1, IMAGE, IMAGE, 2], "image_grid_thw": GRID * 2},
        SOUND,
        r": image_grid_thw row 1 \(1, 2, 4\) is left over: expected 4 image tokens in all, got 2$",
    ),
    "seconds too many": (
        {**CLIP, "second_per_grid_ts": [1.0, 2.0]},
        CLIP,
        " must be one for each of its 1 videos, got 2$",
    ),
    "no seconds": (CLIP, {**CLIP, "second_per_grid_ts": [1.0]}, " has no second_per_grid_ts"),
    "a grid of another rank": (
        {**SOUND, "image_grid_thw": [1, 2, 4]},
        SOUND,
        r" must have shape \(n, 3\), got \(3,\)$",
    ),
    "grids of unlike lengths": (
        {**SOUND, "image_grid_thw": [[1, 2, 4], [1, 2]]},
        SOUND,
        " must be a tensor, an array or a list of numbers",
    ),
    "pixels of another width": (
        {**SOUND, "pixel_values": torch.ones((8, 5))},
        {**SOUND, "pixel_values": PATCHES},
        r" must have the shape \(8, [56]\) of those of sample \d, but for their number",
    ),
    "no pixels": (SOUND, {**SOUND, "pixel_values": PATCHES}, " has no pixel_values, sample"),
    "pixels too few": (
        {**SOUND, "pixel_values": PATCHES[:4]},
        {**SOUND, "pixel_values": PATCHES},
        " must have 8 rows, the patches of its image_grid_thw, got 4$",
    ),
    "pixels without a grid": (
        {**TEXT, "pixel_values": PATCHES},
        SOUND,
        " has pixel_values and no image_grid_thw$",
    ),
    "complex ids": (
        {"input_ids": torch.ones(2, dtype=torch.complex64)},
        TEXT,
        " must be integers, got torch.complex64$",
    ),
    "a mask of 2": ({**TEXT, "attention_mask": [1, 2]}, TEXT, " must hold 0 or 1, got 2"),
    "ids on no device": (
        {"input_ids": torch.ones(2, dtype=torch.int64, device="meta")},
        TEXT,
        " must hold values, which are read here, got .* on the meta device$",
    ),
    "sparse ids": ({"input_ids": torch.ones(2).to_sparse()}, TEXT, " must be a dense tensor"),
    "a list in place of a sample": (
        [1, 2],
        TEXT,
        " must be a mapping of names to values, got list",
    ),
    "what no processor has seen": (
        {"messages": ["hi"], "images": []},
        TEXT,
        " has images, messages, which are none of .*: run the processor first$",
    ),
    "ids that are None": ({"input_ids": None}, TEXT, " has no input_ids$"),
    "images per sample": (
        {**SOUND, "images_per_sample": [1]},
        TEXT,
        " has images_per_sample: it is not used by qwen2_5_vl$",
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(("faulty", "sound", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_the_faulty_sample_is_named(faulty, sound, message, at, packed):
    samples = [sound, sound]
    samples[at] = faulty
    # Pixels of unlike widths are nobody's fault: the second is named.
    named = 1 if "of those of sample" in message else at
    with pytest.raises((TypeError, ValueError), match=f"sample {named}{message}"):
        collate(samples, SPEC, pad_token_id=0, packed=packed)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_two_faults_that_make_up_for_each_other(packed):
    few, many = {"input_ids": [1, IMAGE, IMAGE]}, {"input_ids": [IMAGE, IMAGE, 1, IMAGE, IMAGE]}
    few["image_grid_thw"], many["image_grid_thw"] = GRID * 2, GRID
    with pytest.raises(ValueError, match=r"^sample 0: image_grid_thw row 1 .* is left over"):
        collate([few, many], SPEC, pad_token_id=0, packed=packed)
    with pytest.raises(ValueError, match=r"^sample 0 holds image tokens beyond the last grid"):
        collate([many, few], SPEC, pad_token_id=0, packed=packed)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_markers_that_call_the_neighbours_image_a_video(packed):
    as_video = {"input_ids": [BEGIN, GLM_IMAGE, GLM_IMAGE, END], "image_grid_thw": GRID}
    as_image = {"input_ids": [1, GLM_IMAGE, GLM_IMAGE, 2], "video_grid_thw": GRID}
    for samples in ([as_video, as_image], [as_image, as_video]):
        with pytest.raises(ValueError, match=r"^sample 0"):
            collate(samples, GLM, pad_token_id=0, packed=packed)


def test_a_fault_inside_a_sample_is_named_as_well():
    cut = {"input_ids": [IMAGE, 1, IMAGE], "image_grid_thw": GRID}
    with pytest.raises(ValueError, match=r"^sample 2, image 0: its grid \(1, 2, 4\) needs 2 "):
        collate([SOUND, TEXT, cut], SPEC, pad_token_id=0)


@pytest.mark.parametrize("samples", [dict(SOUND), iter([SOUND]), "ids"])
def test_what_is_no_sequence_of_samples(samples):
    with pytest.raises(TypeError, match="samples must be a sequence of mappings"):
        collate(samples, SPEC, pad_token_id=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pad_token_id": None}, TypeError, "pad_token_id must be an int, got None: a tokenizer"),
        ({"pad_token_id": 1.5}, TypeError, "pad_token_id must be an int, got 1.5"),
        ({"pad_token_id": -1}, ValueError, "pad_token_id must be at least 0, got -1"),
        ({"spec": None}, TypeError, "spec must be an MRopeSpec, got NoneType"),
        ({"pad_to_multiple_of": "8"}, TypeError, "pad_to_multiple_of must be an int, got '8'"),
        ({"extra": "keep"}, ValueError, "extra must be 'stack', 'list' or 'drop', got 'keep'"),
        (
            {"pad_sequences_to_multiple_of": 4},
            ValueError,
            "pad_sequences_to_multiple_of must be None without packed=True",
        ),
    ],
)
def test_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        collate([SOUND], **{"spec": SPEC, "pad_token_id": 0, **options})


def test_extra_names():
    samples = [{**SOUND, "length": 4, "messages": "hi"}, {**TEXT, "length": 2}]
    keep = {"spec": SPEC, "pad_token_id": 0}
    dropped = collate(samples, **keep, extra="drop")
    assert "length" not in dropped
    listed = collate(samples, **keep, extra="list")
    assert (listed["length"], listed["messages"]) == ([4, 2], ["hi", None])
    stacked = [{**sample, "messages": [1, 2]} for sample in samples]
    assert collate(stacked, **keep, extra="stack")["messages"].tolist() == [[1, 2], [1, 2]]
    with pytest.raises(
        TypeError, match=r"messages of sample 0 must .* got str .*extra=.list. keeps"
    ):
        collate(samples, **keep, extra="stack")
