"""The omni families against the upstreams' own functions."""

import re

import pytest
import torch
from hypothesis import assume, given
from omni_support import (
    each_rate,
    kept,
    needs_sglang,
    needs_vllm,
    rope_index,
    rows_of,
    sglang_rope_index,
    spec_of,
    transformers_rope_index,
    vllm_rope_index,
)
from support import assert_same

from vecrope.testing import Refusal, conversations, token_soup

each_transformers = pytest.mark.parametrize("model_type", ["qwen2_5_omni", "qwen3_omni_moe"])


def has_grids(prompt):
    return prompt.image_grid_thw is not None or prompt.video_grid_thw is not None


def has_a_row_without_tokens(prompt):
    return not bool(kept(prompt).any(1).all())


def unmasked_symbols(prompt):
    rows = zip(prompt.symbols, kept(prompt).tolist(), strict=True)
    return [
        "".join(symbol for symbol, keep in zip(line, keeps, strict=True) if keep)
        for line, keeps in rows
    ]


def has_a_vision_start_of_nothing(prompt):
    """Qwen3-Omni numbers nothing after it; at the end of a row both read the token after it."""
    pattern = r"<$" if prompt.spec.model_type == "qwen2_5_omni" else r"<([^IV(]|$)"
    return any(re.search(pattern, row) for row in unmasked_symbols(prompt))


@each_transformers
@each_rate
def test_conversations_are_answered_as_by_transformers(model_type, rate):
    @given(conversations(spec_of(model_type, "transformers", rate)))
    def check(prompt):
        assert_same(rope_index(prompt), transformers_rope_index(prompt))

    check()


@each_transformers
def test_prompts_with_nothing_among_their_media_are_answered_as_by_transformers(model_type):
    @given(conversations(spec_of(model_type, "transformers"), zeros=True))
    def check(prompt):
        assert_same(rope_index(prompt), transformers_rope_index(prompt))

    check()


@each_transformers
@pytest.mark.parametrize("chunk", [1, 0.5, 3])
def test_chunks_of_other_lengths_are_answered_as_by_transformers(model_type, chunk):
    spec = spec_of(model_type, "transformers", 4, seconds_per_chunk=chunk)
    videos = conversations(spec, use_audio_in_video=True, max_segments=2, max_frames=9)

    @given(videos)
    def check(prompt):
        assert_same(rope_index(prompt), transformers_rope_index(prompt))

    check()


@each_transformers
def test_what_is_refused_or_answered_alone_shows_why(model_type):
    @given(token_soup(spec_of(model_type, "transformers", 2)))
    def check(prompt):
        try:
            ours = rope_index(prompt)
        except ValueError:
            with pytest.raises(Refusal):
                prompt.expected()
            return
        try:
            theirs = transformers_rope_index(prompt)
        except (IndexError, RuntimeError, ValueError):
            assert has_grids(prompt)
            assert has_a_row_without_tokens(prompt) or has_a_vision_start_of_nothing(prompt)
            return
        assert_same(ours, theirs)

    check()


@each_transformers
def test_the_positions_go_on_far_behind_a_fraction(model_type):
    spec = spec_of(model_type, "transformers", 13)
    prompts = conversations(spec, max_rows=2, max_segments=9, max_text=3000)

    @given(prompts)
    def check(prompt):
        assert_same(rope_index(prompt), transformers_rope_index(prompt))

    check()


@needs_sglang
@each_rate
def test_conversations_are_answered_as_by_sglang(rate):
    @given(conversations(spec_of("qwen3_omni_moe", "sglang", rate)))
    def check(prompt):
        # Without grids it answers one row, whatever the batch.
        assume(has_grids(prompt) or prompt.input_ids.shape[0] == 1)
        assert_same(rope_index(prompt), sglang_rope_index(prompt))

    check()


@needs_sglang
def test_what_is_answered_alone_and_not_by_sglang_shows_why():
    @given(token_soup(spec_of("qwen3_omni_moe", "sglang", 2)))
    def check(prompt):
        assume(has_grids(prompt))
        try:
            ours = rope_index(prompt, attention_mask=None)
        except ValueError:
            return
        try:
            theirs = sglang_rope_index(prompt)
        except (IndexError, RuntimeError, ValueError):
            symbols = prompt.symbols
            assert not symbols[0] or any(re.search(r"<([^IV(]|$)", row) for row in symbols)
            return
        assert_same(ours, theirs)

    check()


@needs_vllm
@each_transformers
@each_rate
def test_conversations_are_answered_as_by_vllm(model_type, rate):
    @given(conversations(spec_of(model_type, "vllm", rate)))
    def check(prompt):
        position_ids, rope_deltas = rope_index(prompt)
        keep = kept(prompt)
        assert not position_ids[:, ~keep].any()
        for number, row in enumerate(rows_of(prompt)):
            # It pairs the videos of a row with the first of its audios.
            assume(not re.search(r"(?<!<)\(.*<\(", row.symbols[0]))
            theirs = vllm_rope_index(row)
            ours = position_ids[:, number : number + 1, keep[number]], rope_deltas[number, None]
            assert_same(ours, theirs)

    check()


@needs_vllm
@each_transformers
def test_without_seconds_videos_have_those_of_vllm(model_type):
    spec = spec_of(model_type, "vllm", 2)

    @given(conversations(spec, use_audio_in_video=False, max_rows=1))
    def check(prompt):
        (row,) = rows_of(prompt)
        row = type(row)(**{**vars(row), "second_per_grids": None})
        assert_same(rope_index(row), vllm_rope_index(row))

    check()


@needs_vllm
def test_vllm_alone_answers_a_truncated_prompt():
    """Its answer has more positions than the prompt has tokens; we refuse the prompt."""
    from vecrope.testing import Prompt

    spec = spec_of("qwen2_5_omni", "vllm")
    prompt = Prompt.from_symbols(spec, ["t<II"], image_grid_thw=[[1, 4, 4]])
    positions, _ = vllm_rope_index(prompt)
    assert positions.shape[-1] > prompt.input_ids.shape[-1]
    with pytest.raises(ValueError, match="was the prompt truncated inside the image"):
        rope_index(prompt)


def test_int32_ids_keep_their_dtype():
    @given(conversations(spec_of("qwen2_5_omni", "transformers"), max_rows=1))
    def check(prompt):
        assume(has_grids(prompt))
        position_ids, rope_deltas = rope_index(prompt, input_ids=prompt.input_ids.int())
        assert (position_ids.dtype, rope_deltas.dtype) == (torch.int32, torch.int64)
        want = rope_index(prompt)
        assert_same((position_ids.long(), rope_deltas), want)

    check()
