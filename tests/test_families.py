"""Every family under every convention: the pipeline against the loop, and against transformers."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import CORE, each_core, families_of, spec_of, transformers_rope_index
from support import FITTING, assert_same, choose_rows, kept, misfitting, rope_index

from vecrope import get_rope_index
from vecrope.testing import Prompt, Refusal, assert_matches, conversations, token_soup

# Two dozen families share a dozen sets of rules; ids aside, the others are these again.
DISTINCT = {
    replace(spec, model_type="", image_token_id=0): (model_type, convention)
    for model_type, convention in reversed(CORE)
    if (spec := spec_of(model_type, convention)).marker_rule or True
}

FORMS = {"exact": {}, "static": {"max_segments": 500}}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def by_both(prompt):
    """Return the arguments that say by what to tell tokens: by their ids, and by their types."""
    return [{}, {"mm_token_type_ids": prompt.mm_token_type_ids}]


def any_prompt(spec):
    """Draw a prompt, which the reference refuses more often than not if it is the last kind."""
    return st.one_of(*(strategy(spec) for strategy in FITTING.values()), misfitting(spec))


@each_core
def test_the_loop_is_equalled_or_both_refuse(model_type, convention):
    @given(any_prompt(spec_of(model_type, convention)))
    def check(prompt):
        for form in FORMS.values():
            assert_matches(partial(ours, prompt, **form), prompt)

    check()


def ours(prompt, **arguments):
    """Answer with the arguments that a prompt gives, read off the ids."""
    arguments.pop("mm_token_type_ids", None)
    return get_rope_index(spec=prompt.spec, **arguments)
