import pytest
from own_support import (
    SHORT_CONTEXT,
    assert_refused,
)

from tests.own_rules.bailing.calls import BLOCKS, FRAMES

# Refusals


@pytest.mark.parametrize(
    ("spec", "rows", "arguments", "match"),
    [
        pytest.param(
            BLOCKS,
            ["ttt", "<II"],
            {"image_grid_thw": [[1, 4, 4]]},
            r"row 1, image 0: its grid \(1, 4, 4\) needs 4 tokens, got 2 in one run; was the",
            id="truncated",
        ),
        pytest.param(
            BLOCKS, ["<It"], {}, "row 0 holds image tokens beyond the last grid", id="no grid"
        ),
        pytest.param(
            BLOCKS,
            ["ttI"],
            {"image_grid_thw": [[1, 2, 2]]},
            "row 0, token 2: an image must follow a start marker, expected the id 7 right before "
            "each, got a run of 1 image tokens after 0",
            id="no marker",
        ),
        pytest.param(
            BLOCKS,
            ["I"],
            {"image_grid_thw": [[1, 2, 2]]},
            "got a run of 1 image tokens without one",
            id="at the start of a row",
        ),
        pytest.param(
            BLOCKS,
            ["tt<", "Itt"],
            {"image_grid_thw": [[1, 2, 2]]},
            "row 1, token 0: an image must follow .* without one",
            id="a marker in the row before",
        ),
        pytest.param(
            BLOCKS,
            ["<II"],
            {"image_grid_thw": [[1, 2, 2]] * 2},
            "row 0, token 2: an image must follow .* after 9",
            id="touching images",
        ),
        pytest.param(
            BLOCKS,
            ["<V"],
            {"video_grid_thw": [[1, 2, 2]]},
            "a video must follow a start marker, expected the id 8",
            id="a video after the marker of images",
        ),
        pytest.param(
            FRAMES,
            ["[V"],
            {"video_grid_thw": [[1, 2, 2]]},
            "each frame of a video must follow a start marker, expected the id 7",
            id="a frame after the marker of videos",
        ),
        pytest.param(
            FRAMES,
            ["<VV"],
            {"video_grid_thw": [[2, 2, 2]]},
            "each frame of a video must follow .* got a run of 2 video tokens",
            id="two frames in a run",
        ),
        pytest.param(
            BLOCKS,
            ["<V<V"],
            {"video_grid_thw": [[2, 2, 2]]},
            r"video 0: its grid \(2, 2, 2\) needs 2 tokens, got 1 in one run",
            id="two runs of a block",
        ),
        pytest.param(
            SHORT_CONTEXT,
            ["t" * 13],
            {},
            "row 0, token 12: its position 12 must be at least -1 and less than 12",
            id="too far",
        ),
        pytest.param(
            SHORT_CONTEXT,
            ["tttttttt", "<IIIIIII"],
            {"image_grid_thw": [[1, 2, 14]]},
            "row 1, token 1: its position -2 must be at least -1",
            id="too negative",
        ),
        pytest.param(BLOCKS, [""], {"image_grid_thw": [[1, 2, 2]]}, "is left over", id="no tokens"),
    ],
)
def test_what_does_not_fit_is_refused(spec, rows, arguments, match):
    assert_refused(spec, match, rows, **arguments)
