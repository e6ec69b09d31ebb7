"""The omni families against the loop, and rearranged."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from omni_support import each_omni, each_rate, kept, rope_index, rows_of, spec_of, without_zeros
from support import assert_same

from tests.own_rules.omni.mixtures import mixtures
from tests.own_rules.omni.prompts import QWEN2_5, QWEN3
from vecrope.testing import Refusal, conversations, token_soup
from vecrope.testing.sound import video_with_sound

# The loop


@each_omni
@each_rate
def test_conversations_equal_the_loop(model_type, convention, rate):
    @given(conversations(spec_of(model_type, convention, rate), zeros=True))
    def check(prompt):
        assert_same(rope_index(prompt), prompt.expected())
        assert_same(rope_index(prompt, validate=False), prompt.expected())

    check()


@each_omni
def test_soup_equals_the_loop_or_is_refused_by_both(model_type, convention):
    @given(token_soup(spec_of(model_type, convention, 2)))
    def check(prompt):
        try:
            expected = prompt.expected()
        except Refusal:
            with pytest.raises(ValueError, match=r"row|batch|needs|describe|must"):
                rope_index(prompt)
        else:
            assert_same(rope_index(prompt), expected)

    check()


@each_omni
def test_ids_that_no_byte_tells_apart_equal_the_loop(model_type, convention):
    spec = spec_of(model_type, convention, 13)
    rule = replace(spec.own_rule, audio_token_id=2**18, audio_start_token_id=2**18 + 256)

    @given(mixtures(replace(spec, own_rule=rule), max_rows=2))
    def check(prompt):
        assert_same(rope_index(prompt), prompt.expected())

    check()


# Rearranged


@each_omni
def test_rows_are_answered_one_by_one(model_type, convention):
    @given(conversations(spec_of(model_type, convention, 13), zeros=True))
    def check(prompt):
        if prompt.spec.mask_rule == "ignore":
            prompt = replace(prompt, attention_mask=None)
        if prompt.image_grid_thw is None and prompt.video_grid_thw is None:
            prompt = replace(prompt, image_grid_thw=torch.empty((0, 3), dtype=torch.int64))
        position_ids, rope_deltas = rope_index(prompt)
        keep = kept(prompt)
        padded = prompt.spec.delta_length == "padded"
        for number, row in enumerate(rows_of(prompt)):
            want, delta = rope_index(row)
            assert torch.equal(position_ids[:, number, keep[number]], want[:, 0])
            masked = (~keep[number]).sum() if padded else 0
            assert rope_deltas[number] == delta[0] - masked

    check()


@each_omni
def test_packed_equals_padded(model_type, convention):
    @given(conversations(spec_of(model_type, convention, 13)))
    def check(prompt):
        batch, seq_len = prompt.input_ids.shape
        mask = prompt.attention_mask
        position_ids, rope_deltas = rope_index(
            prompt,
            input_ids=prompt.input_ids.reshape(-1),
            attention_mask=None if mask is None else mask.reshape(-1),
            cu_seqlens=torch.arange(batch + 1) * seq_len,
        )
        assert_same((position_ids.view(3, batch, seq_len), rope_deltas), rope_index(prompt))

    check()


@each_omni
def test_packed_rows_of_any_length(model_type, convention):
    @given(conversations(spec_of(model_type, convention, 13)))
    def check(prompt):
        if prompt.image_grid_thw is None and prompt.video_grid_thw is None:
            prompt = replace(prompt, image_grid_thw=torch.empty((0, 3), dtype=torch.int64))
        rows = list(rows_of(prompt))
        lengths = torch.tensor([0] + [row.input_ids.shape[1] for row in rows])
        packed, deltas = rope_index(
            without_zeros(prompt),
            input_ids=torch.cat([row.input_ids[0] for row in rows]),
            attention_mask=None,
            cu_seqlens=lengths.cumsum(0),
        )
        want = [rope_index(row) for row in rows]
        assert_same(
            (packed, deltas),
            (torch.cat([ids[:, 0] for ids, _ in want], 1), torch.cat([delta for _, delta in want])),
        )

    check()


def test_inputs_are_not_changed_and_not_aliased():
    prompt = video_with_sound(
        spec_of(QWEN3, "transformers"), frames=3, height=2, width=2, seconds=1
    )
    before = {
        name: value.clone()
        for name, value in prompt.arguments().items()
        if isinstance(value, torch.Tensor)
    }
    position_ids, _ = rope_index(prompt)
    position_ids.fill_(-5)
    for name, value in before.items():
        assert torch.equal(prompt.arguments()[name], value)


def test_a_list_of_seconds_is_read_as_the_tensor():
    for model_type in (QWEN2_5, QWEN3):
        spec = spec_of(model_type, "transformers")
        prompt = video_with_sound(spec, frames=5, height=2, width=1, seconds=0.5)
        assert_same(rope_index(prompt, second_per_grids=[0.5]), rope_index(prompt))
