"""What SGLang's function for GLM-4V refuses, answered by vecrope."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.integrations.sglang.glm4v_calls import CONFIG, answer, prompt_of
from vecrope.integrations.sglang import get_rope_index_glm4v

# Errors


IMAGE = prompt_of("tIIt", image_grid_thw=[[1, 2, 4]])


@pytest.mark.parametrize(
    ("error", "message", "prompt"),
    [
        pytest.param(
            ValueError,
            r"row 0, image 0: its grid \(1, 4, 4\) needs 4 tokens, got 2 .* truncated",
            prompt_of("tII", image_grid_thw=[[1, 4, 4], [1, 4, 4]]),
            id="a truncated image, and one left over",
        ),
        pytest.param(
            ValueError,
            r"row 1, frame 1 of video 0: its grid \(3, 2, 4\) needs 2 tokens, got 1 .* truncated",
            prompt_of("[II", "[I]", video_grid_thw=[[3, 2, 4]]),
            id="a truncated frame, and one left over",
        ),
        pytest.param(
            ValueError,
            "row 0 holds image tokens beyond the last grid",
            prompt_of("ItI", image_grid_thw=[[1, 2, 2]]),
            id="a missing grid",
        ),
        pytest.param(
            ValueError,
            "row 0, image 0: .* needs 2 tokens, got 1",
            prompt_of("ItIII", image_grid_thw=[[1, 2, 4], [1, 2, 4]]),
            id="runs that fit their grids in sum only",
        ),
        pytest.param(
            ValueError,
            "image_grid_thw row 0 must be positive",
            prompt_of("I", image_grid_thw=[[0, 2, 2]]),
            id="an ill-formed grid",
        ),
        pytest.param(
            ValueError,
            r"image_grid_thw row 0 must have .* of at least spatial_merge_size 2, got \(1, 1, 2\)",
            prompt_of("I", "t", image_grid_thw=[[1, 1, 2], [1, 2, 2]]),
            id="a grid smaller than a token",
        ),
        pytest.param(
            ValueError,
            r"image_grid_thw must be .* nested lists, got \[\[1, 2, 4\], \[1\]\]",
            replace(IMAGE, image_grid_thw=[[1, 2, 4], [1]]),
            id="ragged grids",
        ),
        pytest.param(
            ValueError,
            r"video_grid_thw must have shape \(num_videos, 3\), got \(3,\)",
            replace(IMAGE, video_grid_thw=[1, 2, 4]),
            id="one grid, not in a list",
        ),
        pytest.param(
            TypeError,
            "image_grid_thw must be of a signed integer dtype, uint8 or bool",
            replace(IMAGE, image_grid_thw=[[1.0, 2.0, 4.0]]),
            id="floating-point grids",
        ),
        pytest.param(
            ValueError,
            r"attention_mask must have the shape of input_ids \(1, 4\), got \(1, 3\)",
            replace(IMAGE, attention_mask=torch.ones(1, 3)),
            id="a mask of another shape",
        ),
        pytest.param(
            TypeError,
            "attention_mask must be a tensor, got list",
            replace(IMAGE, attention_mask=[[1, 1, 1, 1]]),
            id="a mask that is a list",
        ),
        pytest.param(
            TypeError,
            "input_ids must be int64 or int32",
            replace(IMAGE, input_ids=torch.ones(1, 4)),
            id="floating-point ids",
        ),
        pytest.param(
            ValueError,
            r"attention_mask must have the shape of input_ids \(1, 2\), got \(1, 3\)",
            replace(prompt_of("tt"), attention_mask=torch.ones(1, 3)),
            id="text only, a mask of another shape",
        ),
        pytest.param(
            ValueError,
            r"attention_mask must have shape \(B, T\), got \(2,\)",
            replace(prompt_of("tt"), attention_mask=torch.ones(2)),
            id="text only, a mask without rows",
        ),
        pytest.param(
            ValueError,
            r"input_ids must have shape \(B, T\), got \(2,\)",
            replace(prompt_of("tt"), input_ids=torch.ones(2)),
            id="text only, ids without rows",
        ),
        pytest.param(
            TypeError,
            "input_ids must be a tensor, got list",
            replace(prompt_of("tt"), input_ids=[[1, 2]]),
            id="text only, ids that are a list",
        ),
        pytest.param(
            TypeError,
            "input_ids must be a tensor, got NoneType",
            replace(IMAGE, input_ids=None),
            id="neither ids nor mask",
        ),
    ],
)
def test_errors(error, message, prompt):
    with pytest.raises(error, match=message):
        answer(prompt)


@pytest.mark.parametrize(
    ("error", "message", "fields"),
    [
        (AttributeError, "video_end_token_id", {"image_token_id": 1, "video_start_token_id": 2}),
        (
            ValueError,
            "image_token_id must be given .* got None",
            {**vars(CONFIG), "image_token_id": None},
        ),
    ],
    ids=["a missing field", "a field that is not set"],
)
def test_errors_in_the_configuration(error, message, fields):
    config = SimpleNamespace(**fields)
    with pytest.raises(error, match=message):
        get_rope_index_glm4v(IMAGE.input_ids, config, IMAGE.image_grid_thw, None, None)
