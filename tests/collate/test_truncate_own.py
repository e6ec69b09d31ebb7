"""Pictures of families with a rule of their own go with the cut, and rows of zeros with none."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import spec_of
from own_support import SPECS, SYMBOLS
from support import kept

from tests.collate.samples import IMAGE, QWEN
from vecrope import collate, truncate
from vecrope.testing import conversations


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


def test_an_image_of_an_omni_sample_goes_with_its_end_marker():
    spec = spec_of("qwen2_5_omni", "transformers")
    row = [7, spec.vision_start_token_id, spec.image_token_id, spec.image_token_id, 8, 9]
    sample = {"input_ids": row, "image_grid_thw": [[1, 2, 4]]}
    for max_length, images in ((5, 1), (4, 0), (3, 0)):
        got, dropped = truncate(sample, spec, max_length)
        assert (len(got["input_ids"]), dropped.images) == (1 + 4 * images, 1 - images)


def test_masked_tokens_of_an_omni_sample_are_no_part_of_its_media():
    spec = spec_of("qwen2_5_omni", "transformers")
    start, image = spec.vision_start_token_id, spec.image_token_id
    sample = {
        "input_ids": [image, 7, start, image, 9, image, 8, 9],
        "attention_mask": [0, 1, 1, 1, 0, 1, 1, 1],
        "image_grid_thw": [[1, 2, 4]],
    }
    for max_length, left in ((7, 7), (6, 2)):
        got, dropped = truncate(sample, spec, max_length)
        assert (len(got["input_ids"]), dropped.images) == (left, int(left == 2))


def test_masked_tokens_are_counted_where_a_picture_is_cut():
    sample = {
        "input_ids": ids_of("ttIIt"),
        "attention_mask": [1, 0, 1, 1, 1],
        "image_grid_thw": [[1, 2, 4]],
    }
    for max_length, left in ((4, 4), (3, 2)):
        got, dropped = truncate(sample, SPECS["isaac"], max_length)
        assert (len(got["input_ids"]), dropped.images) == (left, int(left == 2))


def test_a_picture_between_the_frames_of_a_clip_goes_with_it():
    spec = spec_of("qwen3_vl", "transformers")
    image, video = spec.image_token_id, spec.video_token_id
    sample = {
        "input_ids": [7, video, 8, image, 8, video, 9],
        "image_grid_thw": [[1, 2, 2]],
        "video_grid_thw": [[2, 2, 2]],
    }
    got, dropped = truncate(sample, spec, 5)
    assert (got["input_ids"].tolist(), dropped.images, dropped.videos) == ([7], 1, 1)


@pytest.mark.parametrize("model_type", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_what_is_left_of_an_omni_sample_fits_its_media(model_type):
    spec = spec_of(model_type, "transformers")

    @given(conversations(spec, max_rows=1), st.data())
    def check(prompt, data):
        ids = prompt.input_ids[kept(prompt)]
        assume(len(ids))
        media = ("image_grid_thw", "video_grid_thw", "second_per_grids", "audio_seqlens")
        sample = {"input_ids": ids, "use_audio_in_video": prompt.use_audio_in_video}
        for name in media:
            value = getattr(prompt, name)
            if value is not None and len(value):
                sample[name] = value
        max_length = data.draw(st.integers(1, len(ids)))
        side = data.draw(st.sampled_from(["left", "right"]))
        got, dropped = truncate(sample, spec, max_length, side)
        assert len(got["input_ids"]) == len(ids) - dropped.tokens <= max_length
        left = {name: len(got.get(name, ())) for name in media}
        before = {name: len(sample.get(name, ())) for name in media}
        gone = dropped.images, dropped.videos, dropped.videos, dropped.audios
        assert [before[name] - left[name] for name in media] == [*gone]
        if len(got["input_ids"]):
            collate([got], spec, pad_token_id=0)

    check()


def test_a_row_of_zeros_is_never_dropped():
    sample = {"input_ids": [7, IMAGE, 8], "image_grid_thw": torch.tensor([[0, 0, 0], [1, 2, 2]])}
    got, dropped = truncate(sample, QWEN, 1)
    assert (got["input_ids"].tolist(), dropped.images) == ([7], 1)
    assert got["image_grid_thw"].tolist() == [[0, 0, 0]]
