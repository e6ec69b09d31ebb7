"""What the reference refuses, and how it rounds seconds."""

import pytest
import torch

from tests.testing.glm4v import rope_index
from vecrope.testing.reference import Refusal, get_rope_index


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


# What other families add. Their answers are in tests/families/worked_examples.py.


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
