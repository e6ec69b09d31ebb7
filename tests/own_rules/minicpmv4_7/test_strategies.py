"""The strategies of prompts of MiniCPM-V 4.7: each feature really occurs."""

import pytest
import torch
from hypothesis import Phase, find, given, settings

from vecrope.testing import Refusal
from vecrope.testing.prompt_canvas import CanvasPrompt, canvas_spec, rules_of
from vecrope.testing.strategies_canvas import canvas_soup, galleries

RUNS, MARKERS = canvas_spec("transformers"), canvas_spec("sglang", "4x")
each_spec = pytest.mark.parametrize("spec", [RUNS, MARKERS], ids=["runs", "markers"])

# To be found is enough; what is found need not be small.
SEARCH = settings(max_examples=5000, phases=[Phase.generate], database=None)


def answers(prompt):
    try:
        prompt.expected()
    except Refusal:
        return False
    return True


@each_spec
def test_the_reference_accepts_every_gallery(spec):
    @given(galleries(spec))
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


@pytest.mark.parametrize("feature", OCCUR.values(), ids=OCCUR)
def test_features_of_galleries_occur(feature):
    find(galleries(RUNS), feature, settings=SEARCH)


SOUP = {
    "a slice of another kind": lambda prompt: "V><I" in prompt.symbols[0] and answers(prompt),
    "no marker": lambda prompt: "tIt" in prompt.symbols[0] and answers(prompt),
    "a slice without a picture": lambda prompt: (
        prompt.symbols[0].startswith("t<I") and answers(prompt)
    ),
    "a hole in a crop": lambda prompt: (
        prompt.attention_mask is not None
        and bool(((prompt.attention_mask == 0) & (prompt.mm_token_type_ids > 0)).any())
        and answers(prompt)
    ),
    "a refusal": lambda prompt: not answers(prompt),
}


@pytest.mark.parametrize("feature", SOUP.values(), ids=SOUP)
def test_features_of_soup_occur(feature):
    find(canvas_soup(RUNS), feature, settings=SEARCH)


def test_sizes_of_zeros_and_misfits_occur():
    def has_zeros(prompt):
        return prompt.target_sizes is not None and bool((prompt.target_sizes == 0).all(1).any())

    find(
        canvas_soup(RUNS, zero_sizes=True),
        lambda prompt: has_zeros(prompt) and answers(prompt),
        settings=SEARCH,
    )
    find(canvas_soup(RUNS, fit=False), lambda prompt: not answers(prompt), settings=SEARCH)


@each_spec
def test_what_is_printed_is_the_prompt(spec):
    @given(canvas_soup(spec, zero_sizes=True))
    def check(prompt):
        names = {"CanvasPrompt": CanvasPrompt, "canvas_spec": canvas_spec}
        again = eval(repr(prompt), names)
        assert again.spec == prompt.spec
        for name, value in prompt.arguments().items():
            other = again.arguments()[name]
            assert (value is None) == (other is None)
            assert value is None or torch.equal(value, other)

    check()


def test_another_rule_has_no_canvas():
    from vecrope import MRopeSpec

    spec = MRopeSpec.for_model("glm4v", convention="sglang")
    with pytest.raises(ValueError, match="'glm4v' has no MiniCPMV47, got None"):
        rules_of(spec)
