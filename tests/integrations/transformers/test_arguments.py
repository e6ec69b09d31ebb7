"""What upstreams take and vecrope alone refuses: left-over grids, kinds of seconds, dtypes."""

import numpy as np
import pytest
import torch

from tests.integrations.transformers.answers import answered, patched_answer, prompt_of

UNSOUND = [[1, 1, 1], [0, 2, 2], [-1, 2, 2], [1, 2**20, 2**20]]


def assert_alike(prompt):
    ours, theirs = patched_answer(prompt)
    assert answered(theirs), theirs
    assert answered(ours), ours
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("grid", UNSOUND, ids=str)
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl", "glm4v"])
def test_unsound_grids_left_over(model_type, grid):
    assert_alike(prompt_of(model_type, "tIt", image_grid_thw=[[1, 2, 2], grid]))


def test_a_video_of_one_frame_left_over():
    assert_alike(prompt_of("ernie4_5_vl_moe", "tVt", video_grid_thw=[[2, 2, 2], [1, 2, 2]]))


@pytest.mark.parametrize("grid", UNSOUND[:3], ids=str)
def test_an_unsound_grid_that_is_used_is_refused(grid):
    ours, _ = patched_answer(prompt_of("qwen2_vl", "tIt", image_grid_thw=[grid, [1, 2, 2]]))
    assert isinstance(ours, ValueError)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(np.array([0.5, 1.5]), id="an array"),
        pytest.param(list(np.array([0.5, 1.5], dtype=np.float32)), id="scalars of NumPy"),
        pytest.param([torch.tensor(0.5), torch.tensor(1.5)], id="tensors"),
        pytest.param(torch.tensor([[0.5], [1.5]]), id="a column"),
    ],
)
def test_kinds_of_seconds(seconds):
    prompt = prompt_of(
        "qwen2_5_vl", "tVVtVVt", video_grid_thw=[[2, 2, 2]] * 2, second_per_grid_ts=seconds
    )
    assert_alike(prompt)


def test_narrow_grids():
    prompt = prompt_of("qwen2_vl", "tIt", image_grid_thw=[[1, 2, 2]])
    object.__setattr__(prompt, "image_grid_thw", prompt.image_grid_thw.to(torch.int16))
    assert_alike(prompt)
