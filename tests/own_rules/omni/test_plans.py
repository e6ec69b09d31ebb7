"""Plans of the omni families are made of their items."""

import torch
from hypothesis import given
from omni_support import each_omni, rope_index, spec_of
from own_support import positions_of_blocks
from support import assert_same, at_most

from tests.own_rules.omni.mixtures import mixtures
from vecrope import plan_rope_index
from vecrope.inputs import Inputs
from vecrope.own_rules.common import unmasked_tokens
from vecrope.own_rules.omni.layout import OmniLayout
from vecrope.own_rules.omni.media import Media


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


def test_rounded_sound_is_a_block_a_token():
    """Behind 2**23 every other fraction is lost, so that tokens of the sound share positions."""
    spec = spec_of("qwen3_omni_moe", "transformers", 13.0)
    media = Media((0, 0, 1, 2), [6, 6, 0], [2, 1], [1, 0], [3, 0], [1.0, 0.0], [True])
    tokens = unmasked_tokens(Inputs(torch.zeros((1, 12), dtype=torch.int64)))
    entries = [(2.0**23 - 1.5, 0, 6, ((0, 3), (), (0, 3)))]
    layout = OmniLayout(tokens, spec, media, entries, [2.0**23 + 4])
    positions = torch.tensor(positions_of_blocks(layout.blocks()))
    assert torch.equal(positions, layout.positions())
