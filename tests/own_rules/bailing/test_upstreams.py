from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from own_support import (
    IMAGE,
    SHORT_CONTEXT,
    START,
    VIDEO,
    VIDEO_START,
    answer,
    from_sglang,
    from_vllm,
    needs_sglang,
    needs_vllm,
    single_rows,
)
from support import assert_same, grid_list, rope_index

from tests.own_rules.bailing.calls import VLLM, each_spec
from vecrope.testing import conversations, token_soup

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
