"""What upstreams take and vecrope alone refuses: left-over grids, kinds of seconds, dtypes."""

import numpy as np
import pytest
import torch

from tests.integrations.transformers.answers import answered, patched_answer, prompt_of
from tests.integrations.transformers.releases import configuration_of
from vecrope.integrations.arguments import as_seconds
from vecrope.integrations.transformers.rules import rules_of

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


@pytest.mark.parametrize("grid", UNSOUND, ids=str)
def test_unsound_grids_left_over_where_markers_tell_videos(grid):
    """As GLM-4V of transformers 4.53.2 to 5.1, whose images and videos share a placeholder."""
    rules = rules_of("glm4v")["ids"]
    spec = rules.spec_of(configuration_of("glm4v"))
    start, end, picture = (
        spec.video_start_token_id,
        spec.video_end_token_id,
        spec.image_token_id,
    )
    ids = torch.tensor([[1, start, picture, 1, picture, end, 1, picture, 1]])
    images, videos = torch.tensor([[1, 2, 2]]), torch.tensor([[2, 2, 2]])
    expected = rules.call(None, spec, True, ids, images, videos)
    unsound = torch.tensor([grid])
    for given in ((torch.cat((images, unsound)), videos), (images, torch.cat((videos, unsound)))):
        assert all(map(torch.equal, rules.call(None, spec, True, ids, *given), expected))


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


def test_a_column_of_numpy_is_a_list():
    assert as_seconds(np.array([[0.5], [1.5], [9]]), torch.ones(2, 3)) == [0.5, 1.5]


def test_narrow_grids():
    prompt = prompt_of("qwen2_vl", "tIt", image_grid_thw=[[1, 2, 2]])
    object.__setattr__(prompt, "image_grid_thw", prompt.image_grid_thw.to(torch.int16))
    assert_alike(prompt)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"attention_mask": torch.ones(1, 3)}, ValueError, "attention_mask must have the sh"),
        ({"mm_token_type_ids": torch.ones(1, 2).int()}, ValueError, "mm_token_type_ids must have"),
        ({"video_grid_thw": [[2, 2, 2]]}, TypeError, "video_grid_thw must be a tensor, got list"),
        ({"video_grid_thw": torch.tensor(2)}, ValueError, r"video_grid_thw must have .* got \(\)"),
        ({"video_grid_thw": torch.ones(1, 3) > 0}, ValueError, "video_grid_thw row 0 must have"),
        ({"second_per_grid_ts": torch.tensor(0.5)}, ValueError, r"must have shape .* got \(\)"),
        ({"second_per_grid_ts": 0.5}, TypeError, "must be a tensor or a sequence .* got float"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_by_itself_is_refused_in_words(changes, error, message):
    rules = rules_of("qwen2_5_vl")["types"]
    given = {
        "input_ids": torch.tensor([[1, 10, 10, 1]]),
        "mm_token_type_ids": torch.tensor([[0, 2, 2, 0]]),
        "video_grid_thw": torch.tensor([[2, 2, 2]]),
    }
    with pytest.raises(error, match=message):
        rules.call(
            None, rules.spec_of(configuration_of("qwen2_5_vl")), True, **{**given, **changes}
        )
