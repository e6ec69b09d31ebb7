import pytest
import torch
from own_support import (
    SPECS,
    assert_refused,
)

from tests.own_rules.glm_image.calls import SGLANG, TRANSFORMERS, decode_of
from vecrope import (
    get_decode_position_ids,
)

# Refusals

REFUSED = [
    pytest.param(
        ["tttt", "<I>t"],
        {"image_grid_thw": [[1, 1, 2]], "images_per_sample": [0, 1]},
        r"row 1, image 0: its grid \(1, 1, 2\) needs 2 tokens between its markers, got 1; was the",
        id="too short",
    ),
    pytest.param(
        ["<tI>"],
        {"image_grid_thw": [[1, 1, 3]]},
        "needs 3 tokens between its markers, got 2",
        id="not all tokens of an image are counted as they are not looked at",
    ),
    pytest.param(
        ["<<I>"],
        {"image_grid_thw": [[1, 1, 2]]},
        "row 0, token 1: an image starts inside of another, which has not ended",
        id="a start in an image",
    ),
    pytest.param(
        ["><I>"], {"image_grid_thw": [[1, 1, 1]]}, "got 0; was the prompt", id="a stray end"
    ),
    pytest.param(
        ["tt", "tI"],
        {"image_grid_thw": [[1, 1, 1]]},
        "row 1, token 1: an image token must stand between the markers of an image that has a "
        "grid, got one outside of the 0 such images",
        id="no markers",
    ),
    pytest.param(
        ["tt"],
        {"image_grid_thw": [[1, 0, 1]]},
        "image_grid_thw row 0 must be positive",
        id="an empty grid",
    ),
    pytest.param(
        ["tt"],
        {"image_grid_thw": [[1, 1, 1]], "images_per_sample": [2]},
        "images_per_sample must sum to the 1 rows of image_grid_thw.* got 2",
        id="too many per sample",
    ),
    pytest.param(
        ["tt"],
        {"image_grid_thw": [[1, 1, 1]], "images_per_sample": [0]},
        "only zeros may be left, got 0",
        id="too few per sample",
    ),
    pytest.param(
        ["tt", "tt"],
        {"image_grid_thw": [[1, 1, 1]], "images_per_sample": [2, -1]},
        "images_per_sample must not be negative, got -1 for row 1",
        id="negative per sample",
    ),
    pytest.param(
        ["tt"],
        {"image_grid_thw": [[1, 1, 1]], "images_per_sample": [1, 0]},
        r"images_per_sample must have shape \(1,\), got \(2,\)",
        id="shape of per sample",
    ),
    pytest.param(["tt"], {"attention_mask": [[2, 1]]}, "must hold 0 or 1, got 2", id="mask"),
]


@pytest.mark.parametrize(("rows", "arguments", "match"), REFUSED)
def test_what_does_not_fit_is_refused(rows, arguments, match):
    assert_refused(TRANSFORMERS, match, rows, **arguments)
    with pytest.raises(ValueError, match=match):
        decode_of(rows, TRANSFORMERS, **arguments)


def test_other_arguments_are_refused():
    assert_refused(TRANSFORMERS, "must be None: glm_image reads", ["t"], mm_token_type_ids=[[0]])
    assert_refused(TRANSFORMERS, "has no videos", ["t"], video_grid_thw=[[1, 1, 1]])
    assert_refused(
        TRANSFORMERS,
        "images_per_sample must be of a signed integer dtype",
        ["t"],
        TypeError,
        image_grid_thw=[[1, 1, 1]],
        images_per_sample=[1.0],
    )
    assert_refused(SGLANG, "must have one frame", ["<II>"], image_grid_thw=[[2, 1, 1]])


def test_decode_positions_are_those_of_glm_image_alone():
    with pytest.raises(ValueError, match="spec must be one of glm_image, got one of isaac"):
        decode_of(["t"], SPECS["isaac"])


@pytest.mark.parametrize(
    ("capacity", "error", "match"),
    [
        pytest.param(2, ValueError, "must be at least 3 for row 1, got 2", id="too small"),
        pytest.param(-1, ValueError, "must not be negative, got -1", id="negative"),
        pytest.param(3.0, TypeError, r"must be an int, got 3\.0", id="float"),
        pytest.param(True, TypeError, "must be an int, got True", id="bool"),
    ],
)
def test_a_wrong_capacity_is_refused(capacity, error, match):
    with pytest.raises(error, match=f"max_decode_tokens {match}"):
        decode_of(
            ["t", "t"],
            image_grid_thw=[[1, 1, 1], [1, 1, 2]],
            images_per_sample=[1, 1],
            max_decode_tokens=capacity,
        )


def test_wrong_bounds_are_refused():
    with pytest.raises(ValueError, match="cu_seqlens must run from 0 to the number of tokens 3"):
        get_decode_position_ids(
            torch.zeros(3).long(), TRANSFORMERS, cu_seqlens=torch.tensor([0, 2])
        )
