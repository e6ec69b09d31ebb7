"""The smallest faults: one frame too many, and seconds that reach the bound of their dtype."""

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


def test_half_precision_seconds_end_at_its_largest_number():
    seconds = torch.tensor([16376.0], dtype=torch.float16)
    with pytest.raises(ValueError, match=r"below 65504, .* got 16376\.0 for video 0 of 1 frames"):
        check_seconds(seconds, [1], QWEN)
    check_seconds(seconds - 8, [1], QWEN)


@pytest.mark.parametrize(("kind", "code"), [(IMAGE, 1), (VIDEO, 2)])
def test_the_type_that_is_not_there_is_named(kind, code):
    hint = none_found(kind, QWEN, by_types=True)
    assert hint == f" (mm_token_type_ids holds no {code})"
