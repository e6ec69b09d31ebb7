"""All kinds of media together, in many sizes, and sound for each video."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from omni_support import (
    each_omni,
    needs_vllm,
    rope_index,
    rows_of,
    spec_of,
    transformers_rope_index,
    vllm_rope_index,
)
from support import assert_same

from tests.own_rules.omni.mixtures import mixtures
from vecrope.testing import Prompt

few = settings(max_examples=12)
SOUND_ONLY = ("image", "audio", "sound")


@each_omni
def test_mixtures_equal_the_loop(model_type, convention):
    @few
    @given(mixtures(spec_of(model_type, convention, 13.0)))
    def check(prompt):
        assert_same(rope_index(prompt), prompt.expected())
        flags = torch.tensor(prompt.use_audio_in_video, dtype=torch.bool)
        answer = rope_index(prompt, validate=False, use_audio_in_video=flags)
        assert_same(answer, prompt.expected())

    check()


@pytest.mark.parametrize("rate", [13.0, 25, 0.1])
@pytest.mark.parametrize("kinds", [("image", "audio", "video"), SOUND_ONLY])
def test_roundings_are_those_of_transformers(kinds, rate):
    @few
    @given(mixtures(spec_of("qwen3_omni_moe", "transformers", rate), kinds))
    def check(prompt):
        assert_same(rope_index(prompt), transformers_rope_index(prompt))

    check()


def test_a_silent_video_beside_one_with_sound_as_transformers_answers_it():
    """It does so without the flag, as long as another image is to come in the row."""

    @few
    @given(mixtures(spec_of("qwen3_omni_moe", "transformers", 13.0), last="image"))
    def check(prompt):
        assume({True, False} == set(prompt.use_audio_in_video))
        theirs = transformers_rope_index(replace(prompt, use_audio_in_video=False))
        assert_same(rope_index(prompt), theirs)

    check()


@needs_vllm
@pytest.mark.parametrize("model_type", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_a_silent_video_beside_one_with_sound_as_vllm_numbers_it(model_type):
    @few
    @given(mixtures(spec_of(model_type, "vllm", 13.0), ("image", "video", "sound"), max_rows=1))
    def check(prompt):
        (row,) = rows_of(replace(prompt, use_audio_in_video=True))
        row = replace(row, use_audio_in_video=prompt.use_audio_in_video)
        assert_same(rope_index(row), vllm_rope_index(row))

    check()


def test_a_video_that_is_not_as_its_flag_says_is_refused():
    spec = spec_of("qwen3_omni_moe", "transformers", 2)
    prompt = Prompt.from_symbols(
        spec,
        ["t<VV>t<(VVAA)>"],
        video_grid_thw=[[1, 2, 4], [1, 2, 4]],
        second_per_grids=[1.0, 1.0],
        audio_seqlens=[16],
        use_audio_in_video=[False, True],
    )
    assert_same(rope_index(prompt), prompt.expected())
    with pytest.raises(ValueError, match=r"row 0, token 6: a video with sound needs .* of video 1"):
        rope_index(prompt, use_audio_in_video=[False, False])
    with pytest.raises(ValueError, match="row 0, token 1: a video without sound must not stand"):
        rope_index(prompt, use_audio_in_video=torch.tensor([True, True]))
    with pytest.raises(
        ValueError, match=r"use_audio_in_video must have shape \(2,\), .* got \(1,\)"
    ):
        rope_index(prompt, use_audio_in_video=[True])
    with pytest.raises(TypeError, match=r"use_audio_in_video must be a bool, got \[0, 1\]"):
        rope_index(prompt, use_audio_in_video=[0, 1])


def test_chunks_of_frames_far_apart_cut_single_tokens_off():
    """Frames of more than a chunk take the static form, which cuts as transformers does."""
    spec = spec_of("qwen2_5_omni", "transformers", 25)
    prompt = Prompt.from_symbols(
        spec,
        ["t<(" + "V" * 18 + "A" * 25 + ")>t"],
        video_grid_thw=[[3, 4, 6]],
        second_per_grids=[6.0],
        audio_seqlens=[100],
        use_audio_in_video=True,
    )
    assert_same(rope_index(prompt), transformers_rope_index(prompt))
    assert_same(rope_index(prompt), prompt.expected())
