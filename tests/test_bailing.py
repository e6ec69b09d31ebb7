from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from own_support import (
    IMAGE,
    SHORT_CONTEXT,
    SPECS,
    START,
    VIDEO,
    VIDEO_START,
    answer,
    assert_positions,
    assert_refused,
    from_sglang,
    from_vllm,
    ids_of,
    needs_sglang,
    needs_vllm,
    single_rows,
)
from support import assert_same, grid_list, rope_index

from vecrope import MRopeSpec, get_rope_index
from vecrope.families.rules import Bailing
from vecrope.testing import conversations, token_soup

BLOCKS, FRAMES = SPECS["bailing"], SPECS["bailing with timestamps"]
VLLM = MRopeSpec.for_model("bailing_moe_v3_vl", convention="vllm", image_token_id=IMAGE)
each_spec = pytest.mark.parametrize("spec", [BLOCKS, FRAMES], ids=["blocks", "frames"])


# Worked examples


@each_spec
def test_cells_are_centred_on_the_time_of_their_frame(spec):
    assert_positions(
        spec,
        ["t<IIIIIIt"],
        [
            [[0, 1, 2, 2, 2, 2, 2, 2, 3]],
            [[0, 1, 2, 2, 2, 3, 3, 3, 3]],
            [[0, 1, 1, 2, 3, 1, 2, 3, 3]],
        ],
        [[-5]],
        image_grid_thw=[[1, 4, 6]],
    )


def test_frames_of_one_block_are_two_apart():
    assert_positions(
        BLOCKS,
        ["[VVVVt"],
        [[[0, 1, 1, 3, 3, 4]], [[0, 1, 1, 3, 3, 4]], [[0, 1, 2, 3, 4, 4]]],
        [[-1]],
        video_grid_thw=[[2, 2, 4]],
    )


def test_separate_frames_follow_the_marker_of_images():
    assert_positions(
        FRAMES,
        ["t<VVt<VV"],
        [
            [[0, 1, 2, 2, 3, 4, 5, 5]],
            [[0, 1, 2, 2, 3, 4, 5, 5]],
            [[0, 1, 2, 3, 3, 4, 5, 6]],
        ],
        [[-2]],
        video_grid_thw=[[2, 2, 4]],
    )


def test_positions_may_be_negative():
    position_ids, _ = get_rope_index(
        ids_of("<" + "I" * 7), BLOCKS, image_grid_thw=torch.tensor([[1, 2, 14]])
    )
    assert position_ids[2].tolist() == [[0, -2, -1, 0, 1, 2, 3, 4]]


def test_frames_of_an_image_are_two_apart_as_well():
    position_ids, rope_deltas = get_rope_index(
        ids_of("<IIt"), BLOCKS, image_grid_thw=torch.tensor([[2, 2, 2]])
    )
    assert position_ids[0].tolist() == [[0, 1, 3, 4]]
    assert rope_deltas.tolist() == [[1]]


def test_a_mask_is_ignored():
    arguments = {"image_grid_thw": torch.tensor([[1, 2, 2]])}
    mask = torch.tensor([[0, 0, 1, 1]])
    assert_same(
        get_rope_index(ids_of("t<It"), BLOCKS, attention_mask=mask, **arguments),
        get_rope_index(ids_of("t<It"), BLOCKS, **arguments),
    )


def test_types_are_believed_without_markers():
    assert_positions(
        BLOCKS,
        ["tttt"],
        [[[0, 1, 1, 2]], [[0, 1, 1, 2]], [[0, 1, 2, 2]]],
        [[-1]],
        video_grid_thw=[[1, 2, 4]],
        mm_token_type_ids=[[0, 2, 2, 0]],
    )


def test_under_vllm_it_is_numbered_by_the_shared_rule():
    assert VLLM.own_rule is None
    assert_positions(
        VLLM,
        ["t<IIIIIIt"],
        [
            [[0, 1, 2, 2, 2, 2, 2, 2, 5]],
            [[0, 1, 2, 2, 2, 3, 3, 3, 5]],
            [[0, 1, 2, 3, 4, 2, 3, 4, 5]],
        ],
        [[-3]],
        image_grid_thw=[[1, 4, 6]],
    )


# SGLang, from a wheel


def sglang_rope_index(prompt):
    spec = prompt.spec
    rotary = from_sglang(
        "layers/rotary_embedding/bailing_mrope.py",
        "BailingMRotaryEmbedding",
        torch=torch,
        RotaryEmbedding=object,
    ).BailingMRotaryEmbedding
    bound = 2**31 if spec.own_rule.position_limit is None else -spec.own_rule.least_position
    rope = (
        {}
        if spec.own_rule.position_limit is None
        else {
            "rope_type": "yarn",
            "original_max_position_embeddings": spec.own_rule.position_limit,
            "factor": 1.0,
        }
    )
    text = SimpleNamespace(
        image_patch_token=IMAGE,
        video_patch_token=VIDEO,
        image_start_token=START,
        video_start_token=VIDEO_START,
        use_interleaved_frame_timestamp=spec.separate_frames,
        max_position_embeddings=bound,
        rope_parameters=rope,
    )
    vision = SimpleNamespace(spatial_merge_size=spec.spatial_merge_size)
    config = SimpleNamespace(vision_config=vision, text_config=text)
    arguments = prompt.arguments()
    return rotary.bailing_3drope_get_input_positions_tensor(
        arguments["input_ids"][0],
        config,
        arguments.get("image_grid_thw"),
        arguments.get("video_grid_thw"),
    )


@needs_sglang
@each_spec
def test_prompts_are_answered_as_by_sglang(spec):
    @given(conversations(spec))
    def check(prompt):
        position_ids, rope_deltas = answer(prompt)
        for row, single in enumerate(single_rows(prompt)):
            ours = position_ids[:, row : row + 1], rope_deltas[row : row + 1]
            assert_same(ours, sglang_rope_index(single))

    check()


@needs_sglang
def test_positions_outside_of_the_context_are_refused_as_by_sglang():
    @given(conversations(SHORT_CONTEXT, max_rows=1))
    def check(prompt):
        try:
            theirs = sglang_rope_index(prompt)
        except ValueError:
            with pytest.raises(ValueError, match="must be at least -1 and less than 12"):
                answer(prompt)
        else:
            assert_same(answer(prompt), theirs)

    check()


@needs_sglang
@each_spec
def test_what_vecrope_answers_sglang_answers_alike(spec):
    @given(token_soup(spec))
    def check(prompt):
        grids = grid_list(prompt.image_grid_thw) + grid_list(prompt.video_grid_thw)
        assume(len(prompt.input_ids) == 1 and all(map(any, grids)))
        try:
            ours = answer(prompt)
        except ValueError:
            return
        assert_same(ours, sglang_rope_index(prompt))

    check()


# vLLM, from a wheel


@needs_vllm
def test_prompts_are_answered_as_by_vllm():
    method = from_vllm(
        "bailing_moe_v3_vl.py",
        "BailingMoeV3VLForConditionalGeneration.get_mrope_input_positions",
        torch=torch,
        np=np,
    ).get_mrope_input_positions
    vision = SimpleNamespace(spatial_merge_size=VLLM.spatial_merge_size)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))

    @given(conversations(VLLM, max_rows=1, touching=True))
    def check(prompt):
        keep = torch.ones_like(prompt.input_ids[0]).bool()
        if prompt.attention_mask is not None:
            keep = prompt.attention_mask[0].bool()
        tokens, features, at = prompt.input_ids[0, keep].tolist(), [], 0
        for grid in [] if prompt.image_grid_thw is None else prompt.image_grid_thw:
            at = tokens.index(IMAGE, at)
            data = {"image_grid_thw": SimpleNamespace(data=grid)}
            position = SimpleNamespace(offset=at)
            features.append(SimpleNamespace(modality="image", mm_position=position, data=data))
            at += int(grid.prod()) // VLLM.spatial_merge_size**2
        positions, delta = method(model, tokens, features)
        position_ids, rope_deltas = rope_index(prompt)
        assert_same([position_ids[:, 0, keep]], [positions])
        assert rope_deltas.tolist() == [[delta]]

    check()


# Configurations

TEXT_CONFIG = {
    "image_patch_token": 11,
    "video_patch_token": 12,
    "image_start_token": 13,
    "video_start_token": 14,
    "max_position_embeddings": 100,
}


@pytest.mark.parametrize("place", ["text_config", "llm_config"])
@pytest.mark.parametrize(
    ("fields", "separate_frames", "rule"),
    [
        pytest.param({}, False, Bailing(-100, 100), id="defaults"),
        pytest.param(
            {"use_interleaved_frame_timestamp": True}, True, Bailing(-100, 100), id="timestamps"
        ),
        pytest.param(
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
            False,
            Bailing(-100, 400),
            id="yarn",
        ),
        pytest.param(
            {
                "rope_parameters": {
                    "type": "deepseek_yarn",
                    "factor": 2.5,
                    "original_max_position_embeddings": 50,
                }
            },
            False,
            Bailing(-100, 125),
            id="yarn by its older name, of another context",
        ),
        pytest.param(
            {"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 50}},
            False,
            Bailing(-100, 100),
            id="yarn of a shorter context",
        ),
        pytest.param(
            {"rope_parameters": {"rope_type": "default", "factor": 4.0}},
            False,
            Bailing(-100, 100),
            id="no yarn",
        ),
    ],
)
def test_a_configuration_is_understood(fields, separate_frames, rule, place):
    config = {
        "model_type": "bailing_moe_v3_vl",
        "vision_config": {"spatial_merge_size": 3},
        place: {**TEXT_CONFIG, **fields},
    }
    spec = MRopeSpec.from_config(config, convention="sglang")
    ids = spec.image_token_id, spec.video_token_id, spec.vision_start_token_id
    assert (*ids, spec.video_start_token_id) == (11, 12, 13, 14)
    assert (spec.separate_frames, spec.spatial_merge_size, spec.own_rule) == (
        separate_frames,
        3,
        rule,
    )


@pytest.mark.parametrize("name", TEXT_CONFIG)
def test_a_missing_field_is_named(name):
    text = {key: value for key, value in TEXT_CONFIG.items() if key != name}
    vision = {"spatial_merge_size": 2}
    config = {"model_type": "bailing_moe_v3_vl", "text_config": text, "vision_config": vision}
    with pytest.raises(ValueError, match=f"no field 'text_config.{name}' or 'llm_config.{name}'"):
        MRopeSpec.from_config(config, convention="sglang")


def test_vllm_reads_the_placeholder_elsewhere():
    config = {
        "model_type": "bailing_moe_v3_vl",
        "image_token_id": 5,
        "vision_config": {"spatial_merge_size": 2},
    }
    spec = MRopeSpec.from_config(config, convention="vllm")
    assert (spec.image_token_id, spec.own_rule, spec.multi_frame_images) == (5, None, False)


def test_without_a_configuration_no_position_is_out_of_bounds():
    assert BLOCKS.own_rule == Bailing() == Bailing.of_context()


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
        pytest.param(
            BLOCKS, [""], {"image_grid_thw": [[1, 2, 2]]}, "input_ids hold none", id="no tokens"
        ),
    ],
)
def test_what_does_not_fit_is_refused(spec, rows, arguments, match):
    assert_refused(spec, match, rows, **arguments)
