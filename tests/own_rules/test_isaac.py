from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from own_support import (
    SPECS,
    answer,
    assert_positions,
    assert_refused,
    from_vllm,
    needs_vllm,
    single_rows,
    spread,
    unmasked,
    vllm_features,
)
from support import assert_same

from vecrope import MRopeSpec
from vecrope.families.rules import Isaac
from vecrope.testing import conversations

SPEC = SPECS["isaac"]


# Worked examples


def test_text_before_another_image_goes_on_past_the_largest_side_of_the_last():
    # The first image reaches 2, in its columns.
    assert_positions(
        SPEC,
        ["IIIIIItIIt"],
        [
            [[0, 0, 0, 0, 0, 0, 3, 4, 4, 5]],
            [[0, 0, 0, 1, 1, 1, 3, 0, 0, 5]],
            [[0, 1, 2, 0, 1, 2, 3, 0, 1, 5]],
        ],
        [[-4]],
        image_grid_thw=[[1, 4, 6], [1, 2, 4]],
    )


def test_text_behind_the_last_image_goes_on_past_its_time():
    assert_positions(
        SPEC,
        ["IIIIIItt"],
        [
            [[0, 0, 0, 0, 0, 0, 1, 2]],
            [[0, 0, 0, 1, 1, 1, 1, 2]],
            [[0, 1, 2, 0, 1, 2, 1, 2]],
        ],
        [[-5]],
        image_grid_thw=[[1, 4, 6]],
    )


def test_an_image_far_behind_does_not_reach_past_its_time():
    assert_positions(
        SPEC,
        ["ttttIItI"],
        [[[0, 1, 2, 3, 4, 4, 5, 6]], [[0, 1, 2, 3, 0, 0, 5, 0]], [[0, 1, 2, 3, 0, 1, 5, 0]]],
        [[-1]],
        image_grid_thw=[[1, 2, 4], [1, 2, 2]],
    )


def test_a_wide_image_at_the_end_sets_the_delta():
    # Its columns reach 3, while its time is 0.
    assert_positions(
        SPEC,
        ["IIIIt"],
        [[[0, 0, 0, 0, 1]], [[0, 0, 0, 0, 1]], [[0, 1, 2, 3, 1]]],
        [[-1]],
        image_grid_thw=[[1, 2, 8]],
    )


def test_touching_images_rows_masked_tokens_and_a_hole_in_an_image():
    assert_positions(
        SPEC,
        ["tIIItt", "tItIIt"],
        [
            [[0, 1, 1, 2, 3, 4], [0, 0, 0, 0, 0, 1]],
            [[0, 0, 0, 0, 3, 4], [0, 0, 0, 0, 1, 1]],
            [[0, 0, 1, 0, 3, 4], [0, 0, 0, 0, 0, 1]],
        ],
        [[-1], [-1]],
        image_grid_thw=[[1, 2, 4], [1, 2, 2], [1, 4, 2]],
        attention_mask=[[1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 1, 1]],
    )


# vLLM, from a wheel


def vllm_rope_index(prompt):
    """Return the (3, n) positions of the unmasked tokens of a prompt of one row, and its delta."""
    model_class = "IsaacForConditionalGeneration"
    methods = from_vllm(
        "isaac.py",
        f"{model_class}.iter_mm_grid_hw",
        f"{model_class}.get_mrope_input_positions",
        torch=torch,
        np=np,
    )
    vision = SimpleNamespace(pixel_shuffle_scale_factor=prompt.spec.spatial_merge_size)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.iter_mm_grid_hw = MethodType(methods.iter_mm_grid_hw, model)
    return methods.get_mrope_input_positions(model, unmasked(prompt), vllm_features(prompt))


@needs_vllm
def test_prompts_are_answered_as_by_vllm():
    @given(conversations(SPEC))
    def check(prompt):
        position_ids, rope_deltas = answer(prompt)
        for row, single in enumerate(single_rows(prompt)):
            assume(unmasked(single))
            positions, delta = vllm_rope_index(single)
            assert_same(
                [position_ids[:, row : row + 1], rope_deltas[row]],
                [spread(single, positions), torch.tensor([delta])],
            )

    check()


# Configurations


def test_a_configuration_is_understood():
    config = {
        "model_type": "isaac",
        "image_token_id": 5,
        "vision_config": {"pixel_shuffle_scale_factor": 3},
    }
    spec = MRopeSpec.from_config(config, convention="vllm")
    assert (spec.image_token_id, spec.spatial_merge_size, spec.own_rule) == (5, 3, Isaac())
    assert (spec.position_dtype, spec.delta_length) == ("int64", "valid")


def test_vllm_alone_has_the_family():
    with pytest.raises(ValueError, match="convention must be 'vllm' for 'isaac', got 'sglang'"):
        MRopeSpec.for_model("isaac", convention="sglang", image_token_id=5, spatial_merge_size=2)


# Refusals


@pytest.mark.parametrize(
    ("rows", "arguments", "match"),
    [
        pytest.param(
            ["ttt", "tII"],
            {"image_grid_thw": [[1, 4, 4]]},
            r"row 1, image 0: its grid \(1, 4, 4\) needs 4 tokens, got 2 in one run; was the",
            id="truncated",
        ),
        pytest.param(["I"], {}, "row 0 holds image tokens beyond the last grid", id="no grid"),
        pytest.param(
            ["t"],
            {"image_grid_thw": [[1, 2, 2]]},
            r"image_grid_thw row 0 \(1, 2, 2\) is left over",
            id="left over",
        ),
        pytest.param([""], {"image_grid_thw": [[1, 2, 2]]}, "is left over", id="no tokens at all"),
        pytest.param(
            ["II"],
            {"image_grid_thw": [[2, 2, 2]]},
            "must have one frame, as vllm asks of isaac",
            id="two frames",
        ),
        pytest.param(
            ["t"], {"video_grid_thw": [[1, 2, 2]]}, "isaac has no videos, got 1", id="video"
        ),
    ],
)
def test_what_does_not_fit_is_refused(rows, arguments, match):
    assert_refused(SPEC, match, rows, **arguments)
