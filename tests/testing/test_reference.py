"""The reference on hand-worked cases."""

import pytest

from tests.testing.glm4v import IDS, MARKERS, SGLANG, TRANSFORMERS, rope_index
from vecrope.testing.reference import token_types


def case(name, row, t, h, w, delta, **arguments):
    return pytest.param(row, arguments, [[t], [h], [w]], [[delta]], id=name)


@pytest.mark.parametrize(
    ("row", "arguments", "position_ids", "rope_deltas"),
    [
        case("one token", "t", [0], [0], [0], 0),
        case("text", "ttt", [0, 1, 2], [0, 1, 2], [0, 1, 2], 0),
        case(
            "an image is numbered row by row",
            "t<IIIIII>t",
            [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
            [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
            [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
            -3,
            image_grid_thw=[[1, 4, 6]],
        ),
        case(
            "a tall image advances by its height",
            "IIIt",
            [0, 0, 0, 3],
            [0, 1, 2, 3],
            [0, 0, 0, 3],
            0,
            image_grid_thw=[[1, 6, 2]],
        ),
        case(
            "no merging",
            "IIt",
            [0, 0, 2],
            [0, 0, 2],
            [0, 1, 2],
            0,
            image_grid_thw=[[1, 1, 2]],
            spatial_merge_size=1,
        ),
        case(
            "each frame restarts at temporal offset 0",
            "[<II>t<II>t]",
            [0, 1, 2, 2, 4, 5, 6, 7, 7, 9, 10, 11],
            [0, 1, 2, 2, 4, 5, 6, 7, 7, 9, 10, 11],
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
            0,
            video_grid_thw=[[2, 2, 4]],
        ),
        case(
            "after t frames the next video",
            "[ItI][II]",
            [0, 1, 2, 3, 4, 5, 6, 6, 8],
            [0, 1, 2, 3, 4, 5, 6, 6, 8],
            [0, 1, 2, 3, 4, 5, 6, 7, 8],
            0,
            video_grid_thw=[[2, 2, 2], [1, 2, 4]],
        ),
        case(
            "a video that is never closed",
            "[ItI",
            [0, 1, 2, 3],
            [0, 1, 2, 3],
            [0, 1, 2, 3],
            0,
            video_grid_thw=[[2, 2, 2]],
        ),
        case(
            "touching images take a grid each",
            "tIIIt",
            [0, 1, 2, 2, 4],
            [0, 1, 2, 2, 4],
            [0, 1, 2, 3, 4],
            0,
            image_grid_thw=[[1, 2, 2], [1, 2, 4]],
        ),
        case(
            "touching frames count on into the next video",
            "[IIIII]",
            [0, 1, 1, 3, 3, 5, 6],
            [0, 1, 1, 3, 3, 5, 6],
            [0, 1, 2, 3, 4, 5, 6],
            0,
            video_grid_thw=[[2, 2, 4], [1, 2, 2]],
        ),
        case(
            "an image touching a video's frame",
            "I[I]",
            [0, 1, 2, 3],
            [0, 1, 2, 3],
            [0, 1, 2, 3],
            0,
            image_grid_thw=[[1, 2, 2]],
            video_grid_thw=[[1, 2, 2]],
        ),
        case(
            "grids of zeros are no items",
            "IIt[I]",
            [0, 0, 2, 3, 4, 5],
            [0, 0, 2, 3, 4, 5],
            [0, 1, 2, 3, 4, 5],
            0,
            image_grid_thw=[[0, 0, 0], [1, 2, 4], [0, 0, 0]],
            video_grid_thw=[[0, 0, 0], [1, 2, 2]],
        ),
        case(
            "types instead of ids",
            "t[[It",
            [0, 1, 1, 3, 4],
            [0, 1, 1, 3, 4],
            [0, 1, 2, 3, 4],
            0,
            mm_token_type_ids=[[0, 1, 1, 2, 0]],
            image_grid_thw=[[1, 2, 4]],
            video_grid_thw=[[1, 2, 2]],
        ),
        case(
            "left-over grids on request",
            "I",
            [0],
            [0],
            [0],
            0,
            image_grid_thw=[[1, 2, 2], [1, 2, 2]],
            video_grid_thw=[[1, 2, 2]],
            allow_left_over=True,
        ),
        case("no token at all", "", [], [], [], 0),
    ],
)
def test_positions_on_which_the_conventions_agree(
    row, arguments, position_ids, rope_deltas, convention
):
    assert rope_index([row], convention, **arguments) == (position_ids, rope_deltas)


@pytest.mark.parametrize(
    ("row", "arguments", "sglang", "transformers"),
    [
        pytest.param(
            "tt" + "t<II>",
            {"attention_mask": [[0, 0, 1, 1, 1, 1, 1]], "image_grid_thw": [[1, 2, 4]]},
            ([1, 1, 0, 1, 2, 2, 4], [1, 1, 0, 1, 2, 2, 4], [1, 1, 0, 1, 2, 3, 4], -2),
            ([0, 0, 0, 1, 2, 2, 4], [0, 0, 0, 1, 2, 2, 4], [0, 0, 0, 1, 2, 3, 4], 0),
            id="padding value and the length deltas are measured against",
        ),
        pytest.param(
            "ttt<II>t",
            {"attention_mask": [[1, 0, 1, 1, 1, 1, 1, 1]], "image_grid_thw": [[1, 2, 4]]},
            ([0, 1, 1, 2, 3, 3, 5, 6], [0, 1, 1, 2, 3, 3, 5, 6], [0, 1, 1, 2, 3, 4, 5, 6], -1),
            ([0, 0, 1, 2, 3, 3, 5, 6], [0, 0, 1, 2, 3, 3, 5, 6], [0, 0, 1, 2, 3, 4, 5, 6], 0),
            id="a hole in text",
        ),
        pytest.param(
            "tItIt",
            {"attention_mask": [[1, 1, 0, 1, 1]], "image_grid_thw": [[1, 2, 4]]},
            ([0, 1, 1, 1, 3], [0, 1, 1, 1, 3], [0, 1, 1, 2, 3], -1),
            ([0, 1, 0, 1, 3], [0, 1, 0, 1, 3], [0, 1, 0, 2, 3], 0),
            id="a hole joins two placeholders into one image",
        ),
        pytest.param(
            "[It",
            {"attention_mask": [[0, 1, 1]], "image_grid_thw": [[1, 2, 2]]},
            ([1, 0, 1], [1, 0, 1], [1, 0, 1], -1),
            ([0, 0, 1], [0, 0, 1], [0, 0, 1], 0),
            id="a masked marker marks nothing",
        ),
        pytest.param(
            "ttt",
            {"attention_mask": [[0, 0, 0]]},
            ([1, 1, 1], [1, 1, 1], [1, 1, 1], -3),
            ([0, 0, 0], [0, 0, 0], [0, 0, 0], 0),
            id="a row without tokens",
        ),
        pytest.param(
            "tII",
            {"attention_mask": [[1, 0, 0]]},
            ([0, 1, 1], [0, 1, 1], [0, 1, 1], -2),
            ([0, 0, 0], [0, 0, 0], [0, 0, 0], 0),
            id="the padding value does not count as a position",
        ),
        pytest.param(
            "t<II>t",
            {"image_grid_thw": [[2, 2, 2]]},
            ([0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 4, 5], [0, 1, 2, 2, 4, 5], 0),
            ([0, 1, 2, 3, 3, 4], [0, 1, 2, 2, 3, 4], [0, 1, 2, 2, 3, 4], -1),
            id="an image longer than it is wide",
        ),
        pytest.param(
            "tIII",
            {"image_grid_thw": [[3, 2, 2]]},
            ([0, 1, 2, 3], [0, 1, 1, 1], [0, 1, 1, 1], 0),
            ([0, 1, 2, 3], [0, 1, 1, 1], [0, 1, 1, 1], 0),
            id="deltas count the largest position, even inside an image",
        ),
        pytest.param(
            "]t[II]t",
            {
                "image_grid_thw": [[1, 2, 4]],
                "video_grid_thw": [[1, 4, 2]],
                "allow_left_over": True,
            },
            ([0, 1, 2, 3, 3, 5, 6], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 3, 5, 6], 0),
            ([0, 1, 2, 3, 3, 5, 6], [0, 1, 2, 3, 3, 5, 6], [0, 1, 2, 3, 4, 5, 6], 0),
            id="unbalanced markers",
        ),
    ],
)
def test_positions_on_which_the_conventions_differ(row, arguments, sglang, transformers):
    for rules, (t, h, w, delta) in ((SGLANG, sglang), (TRANSFORMERS, transformers)):
        assert rope_index([row], rules, **arguments) == ([[t], [h], [w]], [[delta]])


@pytest.mark.parametrize(
    ("row", "last", "count"),
    [
        ("[[I]tIt", [0, 0, 2, 0, 0, 1, 0], [0, 0, 2, 0, 0, 2, 0]),
        ("]t[I]tI", [0, 0, 0, 2, 0, 0, 1], [0, 0, 0, 1, 0, 0, 1]),
        ("[ItI", [0, 2, 0, 2], [0, 2, 0, 2]),
        ("[I]]t[I]", [0, 2, 0, 0, 0, 0, 2, 0], [0, 2, 0, 0, 0, 0, 1, 0]),
    ],
)
def test_token_types_by_either_marker_rule(row, last, count):
    ids = [IDS[symbol] for symbol in row]
    assert token_types(ids, marker_rule="last", **MARKERS) == last
    assert token_types(ids, marker_rule="count", **MARKERS) == count


def test_grids_run_on_across_rows(convention):
    position_ids, rope_deltas = rope_index(
        ["[II]t", "[II]t", "[I]tt", "IIItt"],
        convention,
        image_grid_thw=[[1, 6, 2]],
        video_grid_thw=[[2, 2, 4], [1, 2, 2]],
    )
    assert position_ids == [
        [[0, 1, 1, 3, 4], [0, 1, 1, 3, 4], [0, 1, 2, 3, 4], [0, 0, 0, 3, 4]],
        [[0, 1, 1, 3, 4], [0, 1, 1, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]],
        [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 0, 0, 3, 4]],
    ]
    assert rope_deltas == [[0], [0], [0], [0]]


def test_an_open_video_ends_with_its_row(convention):
    position_ids, _ = rope_index(
        ["[I", "II"], convention, image_grid_thw=[[1, 2, 4]], video_grid_thw=[[1, 2, 2]]
    )
    assert position_ids == [[[0, 1], [0, 0]], [[0, 1], [0, 0]], [[0, 1], [0, 1]]]
