"""The smallest faults: one frame too many, and seconds that reach the bound of their dtype."""

from dataclasses import replace

import pytest
import torch

from vecrope import MRopeSpec, get_rope_index
from vecrope.core.faults import check_seconds
from vecrope.core.modality import IMAGE, VIDEO
from vecrope.forms.eager.groups import none_found

QWEN = MRopeSpec.for_model("qwen2_5_vl", convention="sglang")


@pytest.mark.parametrize("form", ["eager", "static"])
def test_an_image_of_two_frames_is_refused_where_images_have_one(form):
    spec = MRopeSpec.for_model("glm4v", convention="vllm")
    assert not spec.multi_frame_images
    side = spec.spatial_merge_size
    ids = torch.tensor([[1, spec.image_token_id, spec.image_token_id]])
    with pytest.raises(ValueError, match="row 0 must have one frame"):
        get_rope_index(ids, spec, image_grid_thw=torch.tensor([[2, side, side]]), form=form)


@pytest.mark.parametrize("form", ["eager", "static"])
def test_a_video_of_fewer_frames_than_share_their_tokens_is_refused(form):
    spec = MRopeSpec.for_model("ernie4_5_vl_moe", convention="transformers")
    ids, side = torch.tensor([[1, spec.video_token_id]]), spec.spatial_merge_size
    with pytest.raises(ValueError, match=r"row 0 must have at least temporal_merge_size 2 frames"):
        get_rope_index(ids, spec, video_grid_thw=torch.tensor([[1, side, side]]), form=form)


@pytest.mark.parametrize("form", ["eager", "static"])
def test_videos_without_seconds_are_refused_where_there_is_no_default(form):
    ids, side = torch.tensor([[1, QWEN.video_token_id]]), QWEN.spatial_merge_size
    spec = replace(QWEN, default_seconds=None)
    assert get_rope_index(ids[:, :1], spec, form=form)[0].tolist() == [[[0]]] * 3
    with pytest.raises(ValueError, match="second_per_grid_ts must be given for the videos of qwen"):
        get_rope_index(ids, spec, video_grid_thw=torch.tensor([[1, side, side]]), form=form)


@pytest.mark.parametrize("form", ["eager", "static"])
def test_images_without_time_need_no_seconds(form):
    spec = replace(MRopeSpec.for_model("qwen2_vl", convention="transformers"), image_time="none")
    ids, side = torch.tensor([[spec.image_token_id] * 2]), spec.spatial_merge_size
    grids = torch.tensor([[2, side, side]])
    position_ids, _ = get_rope_index(ids, spec, image_grid_thw=grids, form=form)
    assert position_ids[:, 0].tolist() == [[0, 0]] * 3


def test_half_precision_seconds_end_at_its_largest_number():
    seconds = torch.tensor([16376.0], dtype=torch.float16)
    with pytest.raises(ValueError, match=r"below 65504, .* got 16376\.0 for video 0 of 1 frames"):
        check_seconds(seconds, [1], QWEN)
    check_seconds(seconds - 8, [1], QWEN)


@pytest.mark.parametrize(("kind", "code"), [(IMAGE, 1), (VIDEO, 2)])
def test_the_type_that_is_not_there_is_named(kind, code):
    hint = none_found(kind, QWEN, by_types=True)
    assert hint == f" (mm_token_type_ids holds no {code})"
