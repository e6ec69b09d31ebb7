"""MiniCPM-V 4.7: what is refused, and the words that say why."""

import pytest
import torch
from own_support import minicpm_spec

from vecrope import get_rope_index
from vecrope.testing import Prompt, Refusal

RUNS, MARKERS = minicpm_spec("transformers"), minicpm_spec("sglang")
LONG = 2**16 * 4


def answer(prompt, **changes):
    arguments = {**prompt.arguments(), "mm_token_type_ids": None, **changes}
    return get_rope_index(spec=prompt.spec, **arguments)


# Shapes and dtypes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target_sizes": [[4, 4]]}, TypeError, "target_sizes must be a tensor, got list"),
        (
            {"target_sizes_videos": torch.ones(1, 2)},
            TypeError,
            "target_sizes_videos must be of a signed integer dtype.*, got torch.float32",
        ),
        (
            {"target_sizes": torch.ones(1, 2, dtype=torch.uint32)},
            TypeError,
            "target_sizes must be of a signed integer dtype, uint8 or bool, got torch.uint32",
        ),
        (
            {"target_sizes": torch.ones(1, 3).long()},
            ValueError,
            r"target_sizes must have shape \(num_image_crops, 2\), got \(1, 3\)",
        ),
        (
            {"target_sizes_videos": torch.ones(2).long()},
            ValueError,
            r"target_sizes_videos must have shape \(num_video_crops, 2\), got \(2,\)",
        ),
        (
            {"image_grid_thw": torch.ones(1, 3).long()},
            ValueError,
            "image_grid_thw must be None: minicpmv4_7 takes target_sizes and target_sizes_videos",
        ),
        (
            {"video_grid_thw": torch.ones(1, 3).long()},
            ValueError,
            "video_grid_thw must be None",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("validate", [True, False])
def test_unsound_shapes_are_refused_always(arguments, error, message, validate):
    prompt = Prompt.from_symbols(RUNS, ["tt"])
    with pytest.raises(error, match=message):
        answer(prompt, **arguments, validate=validate)


def test_other_families_take_no_sizes_of_crops():
    from vecrope import MRopeSpec

    spec = MRopeSpec.for_model("glm4v", convention="sglang")
    with pytest.raises(ValueError, match="target_sizes must be None"):
        get_rope_index(torch.zeros(1, 2).long(), spec, target_sizes=torch.ones(1, 2).long())


# Values

REFUSED = {
    "a size of one zero": (
        RUNS,
        ["t(I)"],
        {"target_sizes": [[4, 0]]},
        r"row 0 must be zeros, for no",
    ),
    "a negative size": (
        RUNS,
        ["t(I)"],
        {"target_sizes": [[-4, 4]]},
        r"row 0 must be zeros, for no",
    ),
    "an indivisible size": (
        RUNS,
        ["t(I)"],
        {"target_sizes": [[0, 0], [4, 6]]},
        r"target_sizes row 1 must be zeros, for no crop, or multiples of 4 from 4 on and below "
        rf"{LONG}, as downsample_mode '16x' asks, got \(4, 6\)",
    ),
    "a large size": (
        RUNS,
        ["t(V)"],
        {"target_sizes_videos": [[4, LONG]]},
        rf"target_sizes_videos row 0 must be .*multiples of 4 from 4 on and below {LONG}",
    ),
    "cut short": (
        RUNS,
        ["tttt", "t(I)"],
        {"target_sizes": [[4, 8]], "mask": ["1111", "0111"]},
        r"row 1, token 2: target_sizes row 0 \(4, 8\) needs 2 tokens, got 1 in one run; was the "
        "prompt truncated inside the image",
    ),
    "a video cut short": (
        MARKERS,
        ["t(I)(V)"],
        {"target_sizes": [[4, 4]], "target_sizes_videos": [[0, 0], [8, 8]]},
        r"row 0, token 5: target_sizes_videos row 1 \(8, 8\) needs 4 tokens, got 1 .* the video",
    ),
    "no size left": (
        RUNS,
        ["t(I)(I)(I)"],
        {"target_sizes": [[4, 4], [0, 0]]},
        "row 0, token 5: a crop of images is beyond the last size that target_sizes has",
    ),
    "no size for a video": (
        RUNS,
        ["t(V)"],
        {"target_sizes": [[4, 4]]},
        "row 0, token 2: a crop of videos is beyond the last size that target_sizes_videos has "
        r"\(target_sizes_videos was not given\)",
    ),
    "no size at all": (
        MARKERS,
        ["t(I)"],
        {},
        "row 0, token 2: a crop of images is beyond the last size that target_sizes has "
        r"\(target_sizes was not given\)",
    ),
    "more crops than the table holds": (
        RUNS,
        ["t(I)(I)"],
        {"target_sizes": [[4, 4]]},
        "row 0, token 5: a crop of images is beyond the last size that target_sizes has",
    ),
    "a size left over": (
        RUNS,
        ["t(I)t"],
        {"target_sizes": [[4, 4], [4, 8]], "target_sizes_videos": [[4, 4]]},
        r"target_sizes row 1 \(4, 8\) is left over: expected 3 crops .* got 1",
    ),
    "a video left over": (
        MARKERS,
        ["t(I)t"],
        {"target_sizes": [[4, 4]], "target_sizes_videos": [[8, 4]]},
        r"target_sizes_videos row 0 \(8, 4\) is left over: expected 2 crops .* got 1",
    ),
    "never closed": (
        MARKERS,
        ["t(I)t", "tt<II"],
        {"target_sizes": [[4, 4], [4, 8]]},
        r"row 1, token 2: target_sizes row 1 \(4, 8\) is left over.*; is the prompt truncated",
    ),
    "nested": (
        MARKERS,
        ["t((I)t"],
        {"target_sizes": [[4, 4]]},
        "row 0, token 1: markers must open and close crops in turn, 10 and 11 do not enclose one",
    ),
    "closed before it is open": (
        MARKERS,
        ["t)t(I)"],
        {"target_sizes": [[4, 4]]},
        "row 0, token 1: markers must open and close crops in turn, 10 and 11 do not enclose one",
    ),
    "closed without a token": (
        MARKERS,
        ["t<>t(I)"],
        {"target_sizes": [[4, 4]]},
        "row 0, token 1: markers must open and close crops in turn, 12 and 13 do not enclose one",
    ),
    "nothing before a crop": (
        RUNS,
        ["ttt", "tI)"],
        {"target_sizes": [[4, 4]], "mask": ["111", "011"]},
        "row 1, token 1: a crop must follow a marker, it is at the start of its row",
    ),
    "a crop after a crop": (
        RUNS,
        ["t(IV)"],
        {"target_sizes": [[4, 4]], "target_sizes_videos": [[4, 4]]},
        "row 0, token 3: a crop must follow a marker, it is right after another crop",
    ),
    "no tokens": (
        RUNS,
        ["", ""],
        {"target_sizes": [[4, 4]]},
        "left over: expected 1 crops.*, got 0",
    ),
}


@pytest.mark.parametrize(("spec", "rows", "rest", "message"), REFUSED.values(), ids=REFUSED)
def test_unsound_values_are_refused(spec, rows, rest, message):
    prompt = Prompt.from_symbols(spec, rows, **rest)
    with pytest.raises(ValueError, match=message):
        answer(prompt)
    with pytest.raises(Refusal):
        prompt.expected()
    # Nothing is promised of the answer, but that there is one.
    position_ids, rope_deltas = answer(prompt, validate=False)
    assert position_ids.shape == (3, *prompt.input_ids.shape)
    assert rope_deltas.shape == (len(rows), 1)


def test_a_thumbnail_that_no_rounding_fixes_is_refused():
    row = f"t({'I' * 1100})<{'I' * 1000}>"
    sizes = [[4, 4400], [4, 4000]]
    prompt = Prompt.from_symbols(RUNS, [row], target_sizes=sizes)
    message = r"row 0, token 1: a thumbnail of \(1, 1100\) tokens cannot be spread .* \(1, 1000\)"
    with pytest.raises(ValueError, match=message):
        answer(prompt)
    row, sizes = f"t({'I' * 1100})", sizes[:1]
    position_ids, _ = answer(Prompt.from_symbols(RUNS, [row], target_sizes=sizes))
    assert position_ids[2, 0, 2:-1].tolist() == list(range(1, 1101))


# What is allowed


def test_markers_are_text_where_there_are_no_pictures():
    prompt = Prompt.from_symbols(MARKERS, ["t(t))<>n"])
    for sizes in (None, torch.zeros(2, 2).long()):
        position_ids, rope_deltas = answer(prompt, target_sizes=sizes)
        assert position_ids[2].tolist() == [list(range(8))]
        assert rope_deltas.tolist() == [[0]]


@pytest.mark.parametrize("row", ["t(I)t)t", "t(I)t(t", "t(I)((", "t(I)))>"])
def test_surplus_markers_at_the_end_of_a_row_are_paired_with_none(row):
    for spec in (RUNS, MARKERS):
        prompt = Prompt.from_symbols(spec, [row], target_sizes=[[4, 4]])
        assert torch.equal(answer(prompt)[0], prompt.expected()[0])


def test_a_batch_without_tokens_has_no_positions():
    for rows in (["", ""], []):
        prompt = Prompt.from_symbols(RUNS, ["", ""])
        ids = prompt.input_ids[: len(rows)]
        position_ids, rope_deltas = get_rope_index(ids, RUNS)
        assert position_ids.shape == (3, len(rows), 0)
        assert rope_deltas.tolist() == [[0]] * len(rows)
        assert position_ids.dtype == rope_deltas.dtype == torch.int64
