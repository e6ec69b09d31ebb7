"""Plans of the omni families are made of their items."""

import pytest
import torch
from hypothesis import given
from omni_support import each_omni, rope_index, rows_of, spec_of
from support import assert_same, at_most

from tests.own_rules.omni.mixtures import mixtures
from vecrope import plan_rope_index
from vecrope.own_rules.omni.entries import write_entries
from vecrope.own_rules.omni.lines import lines_of_entries
from vecrope.testing import conversations


@each_omni
def test_a_plan_expands_to_the_positions(model_type, convention):
    @at_most(12)
    @given(mixtures(spec_of(model_type, convention, 13.0), max_rows=1))
    def check(prompt):
        plan = rope_index(prompt, plan_rope_index)
        positions, rope_deltas = rope_index(prompt)
        assert_same((plan.slice(0, positions.shape[2]), rope_deltas), (positions, rope_deltas))
        assert torch.equal(plan.rope_deltas.view(-1), rope_deltas.view(-1).to(plan.rope_deltas))

    check()


def test_the_plan_of_rows_without_masked_tokens_is_made_of_items(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("the plan was made of positions")

    monkeypatch.setattr("vecrope.plans.from_lines.lines_of", refuse)

    @at_most(12)
    @given(conversations(spec_of("qwen3_omni_moe", "transformers", 13.0)))
    def check(prompt):
        for row in rows_of(prompt):
            positions, _ = rope_index(row)
            plan = rope_index(row, plan_rope_index)
            assert torch.equal(plan.slice(0, positions.shape[2]), positions)

    check()


def test_rounded_sound_is_a_line_a_token():
    """Behind 2**23 every other fraction is lost, so that tokens of the sound share positions."""
    base = 2.0**23 - 1.5
    entries = [(base, 1, 3, (0, 3), [(3, 1), (6, 3)])]
    positions = write_entries(entries, torch.float32)
    along = []
    for tokens, *bases, slopes in lines_of_entries(entries, rounds=True):
        first = torch.tensor(bases, dtype=torch.float32).unsqueeze(1)
        along.append(first + torch.tensor(slopes).unsqueeze(1) * torch.arange(tokens))
    assert torch.equal(torch.cat(along, 1), positions)
