"""The strategies of prompts of MiniCPM-V 4.7: each feature really occurs."""

import pytest
import torch
from hypothesis import given
from own_support import minicpm_spec

from tests.testing.searching import any_such, masked, never_drawn
from vecrope import MRopeSpec
from vecrope.families import rules
from vecrope.testing import Prompt, Refusal, conversations, token_soup
from vecrope.testing.rules import minicpm_rules

RUNS, MARKERS = minicpm_spec("transformers"), minicpm_spec("sglang", "4x")
each_spec = pytest.mark.parametrize("spec", [RUNS, MARKERS], ids=["runs", "markers"])


def answers(prompt):
    try:
        prompt.expected()
    except Refusal:
        return False
    return True


@each_spec
def test_the_reference_accepts_every_gallery(spec):
    @given(conversations(spec))
    def check(prompt):
        position_ids, rope_deltas = prompt.expected()
        assert position_ids.shape == (3, *prompt.input_ids.shape)
        assert rope_deltas.shape == (len(prompt.symbols), 1)

    check()


OCCUR = {
    "a thumbnail": lambda prompt: "(I" in prompt.symbols[0],
    "a clip": lambda prompt: "V)(V" in prompt.symbols[0],
    "newlines between frames": lambda prompt: "V)nn(V" in prompt.symbols[0],
    "lines of slices": lambda prompt: "I>n<I" in prompt.symbols[0],
    "a line of slices": lambda prompt: "I><I" in prompt.symbols[0],
    "padding on the left": lambda prompt: (
        prompt.attention_mask is not None and not prompt.attention_mask[0, 0]
    ),
    "a mask": lambda prompt: prompt.attention_mask is not None and prompt.attention_mask.all(),
    "no mask": lambda prompt: prompt.attention_mask is None,
    "rows": lambda prompt: len(prompt.symbols) > 1,
    "slices of different sizes": lambda prompt: (
        ">" in prompt.symbols[0]
        and prompt.target_sizes is not None
        and len(prompt.target_sizes[1:].unique(dim=0)) > 1
    ),
}


def test_features_of_conversations_occur():
    assert never_drawn(conversations(RUNS), OCCUR) == []


def has_zeros(prompt):
    return prompt.target_sizes is not None and bool((prompt.target_sizes == 0).all(1).any())


SOUP = {
    "a slice of another kind": lambda prompt: "V><I" in prompt.symbols[0] and answers(prompt),
    "no marker": lambda prompt: "tIt" in prompt.symbols[0] and answers(prompt),
    "a slice without a picture": lambda prompt: (
        prompt.symbols[0].startswith("t<I") and answers(prompt)
    ),
    "a hole in a crop": lambda prompt: (
        any(symbol in "IV" for symbol in masked(prompt)) and answers(prompt)
    ),
    "a refusal": lambda prompt: not answers(prompt),
    "sizes of zeros": lambda prompt: has_zeros(prompt) and answers(prompt),
}


def test_features_of_soup_occur():
    assert never_drawn(token_soup(RUNS, zero_grids=True), SOUP) == []


def test_misfits_occur():
    assert any_such(token_soup(RUNS, fit=False), lambda prompt: not answers(prompt))


@each_spec
def test_what_is_printed_is_the_prompt(spec):
    @given(token_soup(spec, zero_grids=True))
    def check(prompt):
        names = {**vars(rules), "Prompt": Prompt, "MRopeSpec": MRopeSpec}
        again = eval(repr(prompt), names)
        assert again.spec == prompt.spec
        for name, value in prompt.arguments().items():
            other = again.arguments()[name]
            assert (value is None) == (other is None)
            assert value is None or torch.equal(value, other)

    check()


def test_another_rule_is_not_that_of_minicpm():
    spec = MRopeSpec.for_model("glm4v", convention="sglang")
    with pytest.raises(ValueError, match="'glm4v' has no MiniCPMV47, got None"):
        minicpm_rules(spec)
