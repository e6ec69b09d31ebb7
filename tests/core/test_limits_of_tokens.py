"""2**30 tokens are too many, and one less is not: of grids, and of positions in seconds."""

from dataclasses import replace

import pytest
import torch

from vecrope import MRopeSpec, get_rope_index
from vecrope.core.faults import check_seconds

GLM = MRopeSpec.for_model("glm4v", convention="sglang")
TIMED = replace(MRopeSpec.for_model("qwen2_5_vl", convention="transformers"), tokens_per_second=2)


@pytest.mark.parametrize("form", ["eager", "static"])
@pytest.mark.parametrize("merge", [1, 2, 3])
def test_the_least_number_of_tokens_that_is_too_many(merge, form):
    spec = replace(GLM, spatial_merge_size=merge)
    ids = torch.tensor([[1, spec.image_token_id]])
    root = 2**15 * merge
    for height, width, message in (
        (root - merge, root + merge, r"image 0: its grid .* needs \d+ tokens, got 1"),
        (root, root, r"row 0 \(1, \d+, \d+\) exceeds that"),
    ):
        grids = torch.tensor([[1, height, width]])
        with pytest.raises(ValueError, match=message):
            get_rope_index(ids, spec, image_grid_thw=grids, form=form)


@pytest.mark.parametrize("form", ["eager", "static"])
def test_grids_may_not_reach_it_together(form):
    spec = MRopeSpec.for_model("qwen2_vl", convention="transformers")
    grids = torch.tensor([[1, 60000, 60000]])
    with pytest.raises(
        ValueError, match=r"the grids must describe fewer than 2\*\*30 tokens in all"
    ):
        get_rope_index(
            torch.tensor([[1]]), spec, image_grid_thw=grids, video_grid_thw=grids, form=form
        )


def test_seconds_may_reach_the_position_before():
    most = torch.tensor([(2**30 - 1) / 2], dtype=torch.float64)
    check_seconds(most, [1], TIMED)
    with pytest.raises(ValueError, match=r"below 2\*\*30, got 536870912\.0 for video 0"):
        check_seconds(most + 0.5, [1], TIMED)
