"""What every family refuses, and what the messages say."""

import pytest
import torch
from oracles import EVERYWHERE, build, spec_of
from support import rope_index

from tests.families.refusals import LIMIT, REFUSED
from vecrope.testing import Refusal

FORMS = {"exact": {}, "static": {"form": "static"}}


@pytest.mark.parametrize(("family", "rows", "arguments", "message"), REFUSED)
def test_refuses(family, rows, arguments, message):
    prompt = build(*family, rows, **arguments)
    for form in FORMS.values():
        with pytest.raises(ValueError, match=message):
            rope_index(prompt, **form)
    if message != LIMIT:
        with pytest.raises(Refusal):
            prompt.expected()


NOT_POSITIVE, ODD, TOO_MANY = (
    "_grid_thw row 0 must be positive",
    "_grid_thw row 0 must have a height and width divisible",
    r"_grid_thw must describe fewer than 2\*\*30 tokens",
)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "ernie4_5_vl_moe"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    ("size", "tokens", "message"),
    [
        pytest.param((1, 3, 2), 1, ODD, id="an odd height"),
        pytest.param((1, 2, 3), 1, ODD, id="an odd width"),
        pytest.param((1, -2, -2), 1, NOT_POSITIVE, id="negative sides"),
        pytest.param((-1, -2, 2), 1, NOT_POSITIVE, id="a negative depth and a negative height"),
        # As products of 64 bits, which wrap, these are what the prompt holds.
        pytest.param((2**61 + 1, 8, 4), 8, TOO_MANY, id="a depth without end"),
        pytest.param((1, 2**62 + 2, 16), 8, TOO_MANY, id="a height without end"),
        pytest.param((1, 16, 2**62 + 2), 8, TOO_MANY, id="a width without end"),
        pytest.param((1, 2 - 2**62, 16), 8, NOT_POSITIVE, id="a negative height without end"),
    ],
)
def test_a_faulty_grid_of_a_block_is_refused_though_the_tokens_would_fit_it(
    size, tokens, message, rows, model_type
):
    for convention in EVERYWHERE:
        merge = spec_of(model_type, convention).temporal_merge_size
        video = [size[0] * merge, *size[1:]]
        row = f"t<{'V' * tokens}>t"
        for image in ("", "<I>"):
            both = [image + row, "t" * len(image + row)]
            images = [[1, 2, 2]] if image else None
            grids = {"image_grid_thw": images, "video_grid_thw": [video]}
            prompt = build(model_type, convention, both[:rows], **grids)
            for form in FORMS.values():
                with pytest.raises(ValueError, match=message):
                    rope_index(prompt, **form)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("convention", EVERYWHERE)
def test_a_block_is_not_measured_in_bytes(convention, rows):
    row = "t<VVVV>".ljust(32, "t")
    prompt = build("qwen2_vl", convention, [row, "t" * 32][:rows], video_grid_thw=[[1, 52, 20]])
    for form in FORMS.values():
        with pytest.raises(ValueError, match=r"its grid \(1, 52, 20\) needs 260 tokens, got 4"):
            rope_index(prompt, video_grid_thw=prompt.video_grid_thw.to(torch.uint8), **form)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_grid_for_a_family_that_sees_nothing_is_left_over(kind):
    prompt = build("qwen3_asr", "sglang", ["ttt"], **{f"{kind}_grid_thw": [[1, 2, 2]]})
    for form in FORMS.values():
        with pytest.raises(ValueError, match=rf"{kind}_grid_thw row 0 \(1, 2, 2\) is left over"):
            rope_index(prompt, **form)


@pytest.mark.parametrize("convention", EVERYWHERE)
def test_an_image_of_no_frame_beside_a_block_is_refused(convention):
    grids = {"image_grid_thw": [[0, 2, 2]], "video_grid_thw": [[2, 2, 2]]}
    prompt = build("ernie4_5_vl_moe", convention, ["t<I>[V]t"], **grids)
    for form in FORMS.values():
        with pytest.raises(ValueError, match="image_grid_thw row 0 must be positive"):
            rope_index(prompt, **form)


@pytest.mark.parametrize(
    ("seconds", "error", "message"),
    [
        ("1", TypeError, "second_per_grid_ts must be a tensor or a sequence of floats, got str"),
        (1.0, TypeError, "second_per_grid_ts must be a tensor or a sequence of floats, got float"),
        ([True], TypeError, "second_per_grid_ts must hold numbers, got True"),
        (["1"], TypeError, "second_per_grid_ts must hold numbers, got '1'"),
        ([10**400], ValueError, "numbers that fit a float, got a whole number of 1329 bits"),
        ([-(10**400)], ValueError, "numbers that fit a float, got a whole number of 1329 bits"),
        (
            torch.ones(1, dtype=torch.bool),
            TypeError,
            "second_per_grid_ts must be of a floating-point or integer dtype, got torch.bool",
        ),
        (
            torch.ones(1, 1),
            ValueError,
            r"second_per_grid_ts must have shape \(1,\), .* got \(1, 1\)",
        ),
    ],
    ids=[
        "text",
        "a number",
        "true in a list",
        "text in a list",
        "a huge number",
        "a huge negative number",
        "bools",
        "a table",
    ],
)
@pytest.mark.parametrize("convention", EVERYWHERE)
def test_refuses_seconds_of_another_type(convention, seconds, error, message):
    prompt = build("qwen2_5_vl", convention, ["t<V>"], video_grid_thw=[[1, 2, 2]])
    with pytest.raises(error, match=message):
        rope_index(prompt, second_per_grid_ts=seconds)


def test_refuses_seconds_by_two_names():
    prompt = build("qwen2_5_vl", "sglang", ["t<V>"], video_grid_thw=[[1, 2, 2]])
    again = rope_index(prompt, second_per_grid_ts=None, second_per_grids=[1.0])
    assert torch.equal(again[0], rope_index(prompt, second_per_grid_ts=[1.0])[0])
    with pytest.raises(ValueError, match="second_per_grid_ts and second_per_grids are the same"):
        rope_index(prompt, second_per_grid_ts=[1.0], second_per_grids=[1.0])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "audio_seqlens",
            torch.ones(1, dtype=torch.int64),
            "must be None: it is not used by qwen2_vl",
        ),
        ("images_per_sample", torch.ones(1, dtype=torch.int64), "images_per_sample must be None"),
        ("target_sizes", torch.ones(1, 2, dtype=torch.int64), "target_sizes must be None"),
        (
            "use_audio_in_video",
            True,
            "use_audio_in_video must be False: qwen2_vl does not take audio",
        ),
    ],
)
def test_refuses_what_is_for_other_families(name, value, message):
    prompt = build("qwen2_vl", "transformers", ["t"])
    with pytest.raises(ValueError, match=message):
        rope_index(prompt, **{name: value})
