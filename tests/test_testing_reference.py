import json
from pathlib import Path

import pytest
import torch

from vecrope.testing.reference import Refusal, get_rope_index, token_types

IDS = {"t": 0, "<": 1, ">": 2, "[": 7, "]": 8, "I": 9}
MARKERS = {"image_token_id": 9, "video_start_token_id": 7, "video_end_token_id": 8}
SGLANG = {
    "marker_rule": "last",
    "separate_frames": True,
    "span_rule": "thw",
    "padding_value": 1,
    "delta_length": "padded",
}
TRANSFORMERS = {
    "marker_rule": "count",
    "separate_frames": True,
    "span_rule": "hw",
    "padding_value": 0,
    "delta_length": "valid",
}
CONVENTIONS = {"sglang": SGLANG, "transformers": TRANSFORMERS}


def rope_index(rows, convention, **arguments):
    return get_rope_index(
        [[IDS[symbol] for symbol in row] for row in rows],
        **{"spatial_merge_size": 2, **MARKERS, **convention, **arguments},
    )


@pytest.fixture(params=CONVENTIONS)
def convention(request):
    return CONVENTIONS[request.param]


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


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        pytest.param(
            ["t", "tII"],
            {},
            r"row 1 has 2 tokens that no grid of image_grid_thw is left for",
            id="no image grid",
        ),
        pytest.param(
            ["I", "I"],
            {"image_grid_thw": [[1, 2, 2]]},
            r"row 1 has 1 tokens that no grid of image_grid_thw is left for",
            id="too few image grids",
        ),
        pytest.param(
            ["III"],
            {"image_grid_thw": [[1, 2, 4]]},
            r"row 0 has 1 tokens that no grid of image_grid_thw is left for",
            id="an image's run longer than its grid",
        ),
        pytest.param(
            ["[I]"],
            {"image_grid_thw": [[1, 2, 2]]},
            r"row 0 has 1 tokens that no grid of video_grid_thw is left for",
            id="a frame does not take an image's grid",
        ),
        pytest.param(
            ["[ItItI]"],
            {"video_grid_thw": [[2, 2, 2]]},
            r"row 0 has 1 tokens that no grid of video_grid_thw is left for",
            id="more frames than the video has",
        ),
        pytest.param(
            ["t", "t<II"],
            {"image_grid_thw": [[1, 4, 4]]},
            r"row 1 ends a run inside image_grid_thw\[0\] = \(1, 4, 4\): 2 of 4 tokens",
            id="a truncated image",
        ),
        pytest.param(
            ["IItI"],
            {"image_grid_thw": [[1, 2, 4], [2, 2, 2]]},
            r"row 0 ends a run inside image_grid_thw\[1\] = \(2, 2, 2\): 1 of 2 tokens",
            id="a truncated second image",
        ),
        pytest.param(
            ["[IItI]"],
            {"video_grid_thw": [[2, 2, 4]]},
            r"row 0 ends a run inside video_grid_thw\[0\] = \(2, 2, 4\): 1 of 2 tokens",
            id="a truncated frame",
        ),
        pytest.param(
            ["tIIt"],
            {"image_grid_thw": [[1, 2, 4]], "attention_mask": [[1, 1, 0, 1]]},
            r"row 0 ends a run inside image_grid_thw\[0\]",
            id="a hole in an image",
        ),
        pytest.param(
            ["tI"],
            {"image_grid_thw": [[1, 2, 2], [0, 0, 0], [1, 4, 2]]},
            r"image_grid_thw\[2\] = \(1, 4, 2\) is left over",
            id="a left-over image",
        ),
        pytest.param(
            ["t"],
            {"video_grid_thw": [[1, 2, 2]]},
            r"video_grid_thw\[0\] = \(1, 2, 2\) is left over",
            id="a left-over video",
        ),
        pytest.param(
            ["[I]"],
            {"video_grid_thw": [[2, 2, 2]]},
            r"video_grid_thw\[0\] = \(2, 2, 2\) is left over",
            id="a left-over frame",
        ),
        pytest.param(
            ["t"],
            {"image_grid_thw": [[1, -2, 2]]},
            r"image_grid_thw\[0\] = \(1, -2, 2\) must be positive throughout, or zero throughout",
            id="a negative side",
        ),
        pytest.param(
            ["t"],
            {"video_grid_thw": [[0, 0, 0], [0, 2, 2]]},
            r"video_grid_thw\[1\] = \(0, 2, 2\) must be positive throughout, or zero throughout",
            id="zero in part",
        ),
        pytest.param(
            ["tI"],
            {"image_grid_thw": [[1, 3, 2]]},
            r"image_grid_thw\[0\] = \(1, 3, 2\) must have h and w divisible by "
            r"spatial_merge_size 2",
            id="a height not divisible",
        ),
        pytest.param(
            ["t[I]"],
            {"video_grid_thw": [[1, 2, 5]]},
            r"video_grid_thw\[0\] = \(1, 2, 5\) must have h and w divisible",
            id="a width not divisible",
        ),
        pytest.param(
            ["tt", "tt"],
            {"attention_mask": [[1, 1], [2, 1]]},
            r"attention_mask must hold 0, 1 only, got 2 in row 1",
            id="a mask value",
        ),
        pytest.param(
            ["tt", "tt"],
            {"mm_token_type_ids": [[0, 0], [0, 3]]},
            r"mm_token_type_ids must hold 0, 1, 2 only, got 3 in row 1",
            id="a token type",
        ),
    ],
)
def test_refusals(rows, arguments, message, convention):
    with pytest.raises(Refusal, match=message):
        rope_index(rows, convention, **arguments)


# What other families add. Their answers are in test_worked_examples.py, each with its source.

BY_IDS = {
    "image_token_id": 9,
    "video_token_id": 6,
    "spatial_merge_size": 2,
    "marker_rule": "none",
    "separate_frames": False,
    "span_rule": "thw",
    "padding_value": 0,
    "delta_length": "valid",
}
TIMED = {**BY_IDS, "video_time": "seconds", "tokens_per_second": 2}


@pytest.mark.parametrize(
    ("rules", "ids", "arguments", "message"),
    [
        pytest.param(
            {**BY_IDS, "multi_frame_images": False},
            [9, 9],
            {"image_grid_thw": [[2, 2, 2]]},
            r"^image_grid_thw\[0\] = \(2, 2, 2\) must have t 1: an image has one frame$",
            id="an image of two frames",
        ),
        pytest.param(
            {**BY_IDS, "temporal_merge_size": 2},
            [6],
            {"video_grid_thw": [[1, 2, 2]]},
            r"^video_grid_thw\[0\] = \(1, 2, 2\) must have t of at least temporal_merge_size$",
            id="too few frames to merge",
        ),
        pytest.param(
            {**BY_IDS, "marker_rule": "adjacent", "vision_start_token_id": 5},
            [5, 4, 9],
            {"image_grid_thw": [[1, 2, 2]]},
            r"^row 0 has no vision_start_token_id right before image_grid_thw\[0\] = \(1, 2, 2\)$",
            id="no marker",
        ),
        pytest.param(
            {**BY_IDS, "marker_rule": "adjacent", "vision_start_token_id": 5},
            [9],
            {"image_grid_thw": [[1, 2, 2]]},
            "^row 0 has no vision_start_token_id right before",
            id="nothing before",
        ),
        pytest.param(
            TIMED,
            [6],
            {"video_grid_thw": [[1, 2, 2]]},
            "^second_per_grid_ts must be given: there is no default_seconds$",
            id="no seconds",
        ),
        pytest.param(
            BY_IDS,
            [6],
            {"video_grid_thw": [[1, 2, 2]], "second_per_grid_ts": [1.0]},
            "^second_per_grid_ts must not be given: no video has seconds$",
            id="seconds for nothing",
        ),
        pytest.param(
            TIMED,
            [6],
            {"video_grid_thw": [[1, 2, 2]], "second_per_grid_ts": []},
            "^second_per_grid_ts must hold 1 values, one for each row of video_grid_thw, got 0$",
            id="too few seconds",
        ),
        *(
            pytest.param(
                TIMED,
                [6],
                {"video_grid_thw": [[1, 2, 2]], "second_per_grid_ts": [value]},
                f"^second_per_grid_ts must be finite and not negative, got {value}$",
                id=f"{value} seconds",
            )
            for value in (-0.5, float("nan"), float("inf"))
        ),
    ],
)
def test_refusals_of_other_rules(rules, ids, arguments, message):
    with pytest.raises(Refusal, match=message):
        get_rope_index([ids], **rules, **arguments)


def test_seconds_may_be_absent_where_there_is_no_video():
    assert get_rope_index([[5]], **TIMED) == ([[[0]], [[0]], [[0]]], [[0]])


def test_a_row_of_zeros_has_its_seconds():
    position_ids, _ = get_rope_index(
        [[6, 6]],
        **TIMED,
        video_grid_thw=[[0, 0, 0], [2, 2, 2]],
        second_per_grid_ts=[9.0, 2.5],
    )
    assert position_ids == [[[0, 5]], [[0, 0]], [[0, 0]]]


def test_an_ignored_mask_is_still_looked_at():
    rules = {**BY_IDS, "mask_rule": "ignore", "delta_length": "valid", "padding_value": 7}
    answer = get_rope_index([[5, 5]], **rules, attention_mask=[[0, 1]])
    assert answer == ([[[0, 1]], [[0, 1]], [[0, 1]]], [[0]])
    with pytest.raises(Refusal, match="attention_mask must hold 0, 1 only, got 2 in row 0"):
        get_rope_index([[5, 5]], **rules, attention_mask=[[2, 1]])


@pytest.mark.parametrize("order", ["rate", "seconds"])
@pytest.mark.parametrize("kind", ["list", "float32", "float64"])
@pytest.mark.parametrize("rate", [2, 25, 0.1])
def test_seconds_are_rounded_as_torch_rounds_them(rate, kind, order):
    """As in transformers (the rate first) and SGLang (the seconds first)."""
    frames = torch.arange(400)
    for fps in (0.3, 1.7, 3, 7, 23.976, 25, 29.97, 30):
        number = 2 / fps
        if kind == "list":
            seconds = number
        else:
            seconds = torch.tensor([number], dtype=getattr(torch, kind))[0]
        times = frames * (rate * seconds) if order == "rate" else frames * seconds * rate
        position_ids, _ = get_rope_index(
            [[6] * 400],
            **{**TIMED, "tokens_per_second": rate},
            time_order=order,
            seconds_type=kind,
            video_grid_thw=[[400, 2, 2]],
            second_per_grid_ts=[float(seconds)],
        )
        assert position_ids[0][0] == times.long().tolist()


GOLDEN = json.loads((Path(__file__).parent / "glm4v_golden.json").read_text())

# Both upstreams raise; the reference gives each image its grid.
ADJACENT_IMAGES = "adjacent images"

# Both upstreams ignore the grids that no token asks for; the reference refuses, unless told not to.
LEFT_OVER_GRIDS = {
    "left-over grid",
    "masked markers do not count",
    "stray end first",
    "two starts, one end",
}

# transformers takes a grid of one token for a run of two and then one of two tokens for a run of
# one: the lengths cancel, so that it answers. The reference refuses.
CANCELLING_GRIDS = ("stray end first", "transformers")

# Without any grid SGLang takes the largest position over the padding too, which holds 1. In these
# cases a row has fewer than two tokens, so that the padding is the largest.
PADDING_IN_SGLANGS_DELTA = {"random 2", "random 12", "random 26", "random 30", "random 32"}


def golden_arguments(golden):
    names = ("attention_mask", "image_grid_thw", "video_grid_thw")
    return {name: golden[name] for name in names if golden[name] is not None}


@pytest.mark.parametrize("upstream", CONVENTIONS)
@pytest.mark.parametrize("golden", GOLDEN["cases"], ids=lambda golden: golden["name"])
def test_the_upstreams_own_answers(golden, upstream):
    def answer(**more):
        return get_rope_index(
            golden["input_ids"],
            **GOLDEN["config"],
            **CONVENTIONS[upstream],
            **golden_arguments(golden),
            **more,
        )

    name, expected = golden["name"], golden[upstream]
    if name == ADJACENT_IMAGES:
        assert expected["raises"] == "RuntimeError"
        assert answer() == (
            [[[0, 1, 2, 2, 4]], [[0, 1, 2, 2, 4]], [[0, 1, 2, 3, 4]]],
            [[0]],
        )
        return
    if "raises" in expected or (name, upstream) == CANCELLING_GRIDS:
        with pytest.raises(Refusal, match="row 0"):
            answer()
        return
    left_over = name in LEFT_OVER_GRIDS
    if left_over:
        with pytest.raises(Refusal, match="left over"):
            answer()

    answers = [answer(allow_left_over=left_over)]
    if upstream == "transformers":
        types = golden["mm_token_type_ids"]
        answers.append(answer(mm_token_type_ids=types, allow_left_over=left_over))
    for position_ids, rope_deltas in answers:
        assert position_ids == expected["position_ids"]
        if upstream == "sglang" and name in PADDING_IN_SGLANGS_DELTA:
            for mask, got, want in zip(
                golden["attention_mask"], rope_deltas, expected["rope_deltas"], strict=True
            ):
                assert want[0] - got[0] == (1 if sum(mask) < 2 else 0)
        else:
            assert rope_deltas == expected["rope_deltas"]
