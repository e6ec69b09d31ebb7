"""The families whose pictures are described by more than a grid: dummy pictures and truncation."""

import pytest
import torch
from own_support import SPECS, minicpm_spec
from tiny_own_models import tiny_own_model

from tests.collate.model_samples import samples_of
from vecrope import MRopeSpec, collate, dummy_image, truncate

pytestmark = pytest.mark.filterwarnings("ignore:.* has layers of linear attention")
OPTIONS = {
    "left": {"padding_side": "left"},
    "right": {},
    "packed": {"packed": True, "pad_to_multiple_of": 8},
}


def logits_of(model, batch):
    """Return the logits of tokens with a label."""
    logits = model(**{**batch, "labels": None, "use_cache": False}).logits
    return logits[batch["labels"] != -100]


def text_samples(model_type):
    samples = [{"input_ids": [20] * length, "labels": [20] * length} for length in (3, 5)]
    for sample in samples:
        if model_type == "glm_image":  # of which the last token starts a picture to be generated
            sample["input_ids"] = [*sample["input_ids"][:-1], 13]
            sample["image_grid_thw"] = [[1, 2, 2]]
        else:
            sample["mm_token_type_ids"] = [0] * len(sample["labels"])
    return samples


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("model_type", ["glm_image", "minicpmv4_7"])
def test_a_dummy_image_changes_nothing(model_type, options):
    model = tiny_own_model(model_type)
    spec = MRopeSpec.from_config(model.config, convention="transformers")
    real = samples_of(model_type, "own rule")
    pixels = real[0]["pixel_values"]
    features = pixels.shape[1:3] if model_type == "minicpmv4_7" else pixels.shape[1:]
    dummy = dummy_image(spec, features)
    plain = collate(text_samples(model_type), spec, pad_token_id=0, **options)
    batch = collate(text_samples(model_type), spec, pad_token_id=0, dummy_image=dummy, **options)
    assert int((batch["input_ids"] == spec.image_token_id).sum()) == 1
    runs = []
    hook = model.model.get_image_features
    model.model.get_image_features = lambda *args, **kwargs: runs.append(1) or hook(*args, **kwargs)
    try:
        got = logits_of(model, batch)
    finally:
        del model.model.get_image_features
    assert runs == [1]
    torch.testing.assert_close(got, logits_of(model, plain))
    with_pictures = collate(real, spec, pad_token_id=0, dummy_image=dummy, **options)
    want = collate(real, spec, pad_token_id=0, **options)
    assert torch.equal(with_pictures["pixel_values"], want["pixel_values"])


def test_what_a_dummy_image_must_be():
    spec = minicpm_spec("transformers")
    with pytest.raises(ValueError, match=r"pixel_features of minicpmv4_7 must be \(channels, rows"):
        dummy_image(spec, 588)
    with pytest.raises(TypeError, match=r"pixel_features must be an int, got 588\.0"):
        dummy_image(spec, 588.0)
    dummy = dummy_image(spec, (3, 14))
    del dummy["labels"]
    sample = {"input_ids": [1, 2], "labels": [1, 2]}
    with pytest.raises(ValueError, match="dummy_image has no labels, the samples have"):
        collate([sample], spec, pad_token_id=0, dummy_image=dummy)
    with pytest.raises(TypeError, match="dummy_image must be a mapping"):
        collate([sample], spec, pad_token_id=0, dummy_image=[1])


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_a_dummy_image_that_does_not_fit_its_grid_is_named(packed):
    spec = MRopeSpec.for_model("qwen2_vl", convention="transformers")
    dummy = {"input_ids": [1], "image_grid_thw": [[1, 2, 2]], "pixel_values": torch.ones(4, 6)}
    with pytest.raises(ValueError, match=r"^dummy_image: image_grid_thw row 0 .* is left over"):
        collate([{"input_ids": [1, 2]}], spec, pad_token_id=0, packed=packed, dummy_image=dummy)


# `minicpm_spec`: 20 and 21 are images and videos, 10 to 13 the markers, 14 a newline. A picture of
# two slices, a clip of two frames, and a picture.
SLICED = [10, 20, 20, 11, 12, 20, 13, 14, 12, 20, 13]
FRAMES = [10, 21, 11, 10, 21, 11]
IDS = [1, *SLICED, 2, *FRAMES, 3, 10, 20, 11, 4]
SIZES = [[4, 8], [4, 4], [4, 4], [4, 4]]


@pytest.mark.parametrize(
    ("max_length", "side", "tokens", "crops", "frames", "dropped"),
    [
        (24, "right", 24, [0, 1, 2, 3], 2, (0, 0)),
        (23, "right", 23, [0, 1, 2, 3], 2, (0, 0)),
        (22, "right", 20, [0, 1, 2], 2, (1, 0)),
        (18, "right", 13, [0, 1, 2], 0, (1, 1)),
        (11, "right", 1, [], 0, (2, 1)),
        (22, "left", 12, [3], 2, (1, 0)),
        (10, "left", 5, [3], 0, (1, 1)),
        (3, "left", 1, [], 0, (2, 1)),
    ],
)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_crops_of_a_picture_and_frames_of_a_clip_go_together(
    max_length, side, tokens, crops, frames, dropped, masked
):
    spec = minicpm_spec("transformers")
    pixels = [
        torch.full((1, 3, 2, 2 * height * width), at) for at, (height, width) in enumerate(SIZES, 1)
    ]
    sample = {
        "input_ids": IDS,
        "mm_token_type_ids": [(token == 20) + 2 * (token == 21) for token in IDS],
        "target_sizes": SIZES,
        "pixel_values": torch.cat(pixels, -1).float(),
        "target_sizes_videos": [[4, 4]] * 2,
        "pixel_values_videos": torch.ones((1, 3, 2, 64)),
    }
    if masked:
        sample["attention_mask"] = [token not in (1, 2, 3, 4) for token in IDS]
    got, gone = truncate(sample, spec, max_length, side)
    assert len(got["input_ids"]) == tokens
    assert (gone.images, gone.videos) == dropped
    assert got.get("target_sizes", torch.empty(0, 2)).tolist() == [SIZES[at] for at in crops]
    kept = torch.cat([pixels[at] for at in crops], -1).float() if crops else None
    assert ("pixel_values" in got) == bool(crops)
    assert kept is None or torch.equal(got["pixel_values"], kept)
    assert len(got.get("target_sizes_videos", ())) == frames
    if not masked or tokens > 1:
        collate([got], spec, pad_token_id=0)


def test_the_number_of_a_samples_images_goes_with_them():
    spec = MRopeSpec.for_model("glm_image", convention="transformers")
    start, end = spec.own_rule.image_start_token_id, spec.own_rule.image_end_token_id
    sample = {
        "input_ids": [7, start, spec.image_token_id, end, start],
        "image_grid_thw": [[1, 1, 1], [1, 2, 2]],
        "images_per_sample": [2],
    }
    got, dropped = truncate(sample, spec, 3)
    assert (got["images_per_sample"].tolist(), dropped.images) == ([1], 1)
    collate([got], spec, pad_token_id=0)


@pytest.mark.parametrize("name", ["isaac", "bailing"])
def test_pictures_of_engines_alone_go_entirely(name):
    # Two pictures of two tokens, a start marker before each.
    ids = [1, 7, 9, 9, 2, 7, 9, 9, 3]
    grid = [1, 2, 4] if SPECS[name].spatial_merge_size == 2 else [1, 1, 2]
    sample = {"input_ids": ids, "image_grid_thw": [grid] * 2}
    got, dropped = truncate(sample, SPECS[name], 7, start_token_ids=[7])
    assert (got["input_ids"].tolist(), dropped.images) == (ids[:5], 1)
    assert got["image_grid_thw"].tolist() == [grid]
    collate([got, sample], SPECS[name], pad_token_id=0)


def test_patches_of_crops_that_do_not_fit_their_sizes_are_refused():
    sample = dict(samples_of("minicpmv4_7", "own rule")[0])
    sample["pixel_values"] = sample["pixel_values"][..., :-1]
    expected = r"pixel_values of sample 0 must hold \d+ patches of \d+ columns, as its target_sizes"
    with pytest.raises(ValueError, match=expected):
        collate([sample], minicpm_spec("transformers"), pad_token_id=0)
