"""What no 32-bit number counts is refused, in the sum of images and videos as well."""

import pytest
import torch
from oracles import spec_of

from vecrope import get_rope_index


def test_images_and_videos_that_describe_2_to_the_30_tokens_together_are_refused():
    grid = torch.tensor([[1, 2**16, 2**15]])
    ids = torch.tensor([[7]])
    spec = spec_of("qwen2_5_omni", "transformers")
    with pytest.raises(
        ValueError, match=r"the grids must describe fewer than 2\*\*30 tokens in all"
    ):
        get_rope_index(ids, spec, image_grid_thw=grid, video_grid_thw=grid, second_per_grids=[1.0])
