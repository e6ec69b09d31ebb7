"""Prompts of every family."""

import pytest
from hypothesis import strategies as st
from support import (
    FITTING,
    misfitting,
)

from vecrope import get_rope_index

FORMS = {"exact": {}, "static": {"form": "static"}}

each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def any_prompt(spec):
    """Draw any kind of prompt; of the last kind the reference refuses most."""
    return st.one_of(*(strategy(spec) for strategy in FITTING.values()), misfitting(spec))


def by_ids(spec, **options):
    """Return vecrope's function of a prompt's arguments, less the types."""

    def function(**arguments):
        return get_rope_index(spec=spec, **{**arguments, "mm_token_type_ids": None}, **options)

    return function
