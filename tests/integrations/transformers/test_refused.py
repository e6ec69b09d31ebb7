"""What a patched model refuses."""

from dataclasses import replace

import pytest
import torch

from tests.integrations.transformers.answers import answered, patched_answer, prompt_of

# Not answered


ACCIDENTS = [
    pytest.param(["III"], {"image_grid_thw": [[1, 2, 2]]}, "beyond the last grid", id="spread"),
    pytest.param(
        ["IItI"], {"image_grid_thw": [[1, 2, 2], [1, 2, 4]]}, "truncated", id="the lengths cancel"
    ),
]


@pytest.mark.parametrize(("rows", "arguments", "message"), ACCIDENTS)
def test_answers_by_accident_are_refused(rows, arguments, message):
    ours, theirs = patched_answer(prompt_of("qwen2_vl", *rows, **arguments))
    assert answered(theirs)
    with pytest.raises(ValueError, match=message):
        raise ours


@pytest.mark.parametrize(
    ("model_type", "rows", "arguments", "message"),
    [
        pytest.param(
            "glm4v",
            ["tt", "tII"],
            {"image_grid_thw": [[1, 4, 4], [1, 2, 2]]},
            r"row 1, image 0: its grid \(1, 4, 4\) needs 4 tokens, got 2 .* truncated inside",
            id="cut in an image",
        ),
        pytest.param(
            "glm4v",
            ["[It", "[II"],
            {"video_grid_thw": [[2, 2, 4]]},
            r"row 0, frame 0 of video 0: its grid .* needs 2 tokens, got 1",
            id="cut in a frame",
        ),
        pytest.param(
            "qwen2_vl",
            ["tVV"],
            {"image_grid_thw": [[1, 2, 2]], "video_grid_thw": [[3, 2, 2]]},
            r"row 0, video 0: its grid \(3, 2, 2\) needs 3 tokens, got 2",
            id="cut in a video, an image left over",
        ),
        pytest.param(
            "qwen2_vl",
            ["tVV"],
            {"video_grid_thw": [[1, 2, 2]]},
            "row 0 holds video tokens beyond the last grid: expected 1 .* got 2",
            id="too many tokens",
        ),
        pytest.param(
            "qwen2_vl",
            ["ttI"],
            {"image_grid_thw": [[1, 1, 2]]},
            r"image_grid_thw row 0 must have a height and width of at least spatial_merge_size 2",
            id="no token in a grid",
        ),
        pytest.param(
            "qwen2_vl",
            ["tI"],
            {},
            "row 0 holds image tokens beyond the last grid",
            id="no grid",
        ),
    ],
)
def test_prompts_without_positions_are_refused(model_type, rows, arguments, message):
    width = max(map(len, rows))
    prompt = prompt_of(model_type, *(row.rjust(width, "t") for row in rows), **arguments)
    ours, theirs = patched_answer(prompt)
    assert not answered(theirs)
    with pytest.raises(ValueError, match=message):
        raise ours


def test_types_are_asked_for():
    prompt = prompt_of("qwen2_vl", "tI", image_grid_thw=[[1, 2, 2]])
    ours, _ = patched_answer(replace(prompt, mm_token_type_ids=None))
    with pytest.raises(TypeError, match="got NoneType: pass what the processor returns"):
        raise ours


def test_seconds_of_every_video_are_asked_for():
    prompt = prompt_of(
        "qwen2_5_vl", "tVtV", video_grid_thw=[[1, 2, 2]] * 2, second_per_grid_ts=[0.5]
    )
    ours, _ = patched_answer(prompt)
    with pytest.raises(ValueError, match=r"must have shape \(2,\), one for each row"):
        raise ours


def test_a_type_that_is_none():
    prompt = prompt_of("qwen2_vl", "tI", image_grid_thw=[[1, 2, 2]])
    ours, theirs = patched_answer(replace(prompt, mm_token_type_ids=torch.tensor([[0, 3]])))
    assert isinstance(theirs, KeyError)
    with pytest.raises(ValueError, match=r"row 0, token 1: .* must hold 0 or 1 or 2, got 3"):
        raise ours
