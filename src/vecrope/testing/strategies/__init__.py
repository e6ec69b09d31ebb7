"""Prompts for hypothesis: conversations as a processor lays them out, and hostile token soup."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from hypothesis import strategies as st

from vecrope.checks import check_spec
from vecrope.families.rules import MiniCPMV47, OmniRule
from vecrope.spec import MRopeSpec
from vecrope.testing.prompt import Prompt
from vecrope.testing.strategies import minicpmv4_7, omni, own_rules, shared

__all__ = ["conversations", "token_soup"]


def conversations(spec: MRopeSpec, **options: Any) -> st.SearchStrategy[Prompt]:
    """Draw prompts as the family's processor lays them out; the reference accepts every one.

    Rows of text, images, videos and whatever else the family has, padded on either side or not at
    all. They shrink towards one row of one text token.

    Args:
        spec: the rules under which the prompts are read.
        options: for every family `max_rows`, the largest B, `max_segments`, the most texts, images
            and so on in a row, and `max_side`, the largest height and width of an image in tokens;
            what else a family takes is documented by the function of this name in
            `vecrope.testing.strategies.shared`, `.omni`, `.minicpmv4_7` and `.own_rules`.
    """
    strategy: st.SearchStrategy[Prompt] = _module_of(spec).conversations(spec, **options)
    return strategy


def token_soup(spec: MRopeSpec, **options: Any) -> st.SearchStrategy[Prompt]:
    """Draw hostile prompts: stray placeholders, unbalanced markers, a mask with any holes.

    The grids fit the tokens where `fit` is true, so that the reference accepts the prompts. Omni
    families and those of `strategies.own_rules` have no such option: the reference refuses some.

    Args:
        spec: the rules under which the prompts are read.
        options: as documented by the function of this name in the family's module.
    """
    strategy: st.SearchStrategy[Prompt] = _module_of(spec).token_soup(spec, **options)
    return strategy


def _module_of(spec: MRopeSpec) -> ModuleType:
    check_spec(spec)
    if spec.own_rule is None:
        return shared
    return {OmniRule: omni, MiniCPMV47: minicpmv4_7}.get(type(spec.own_rule), own_rules)
