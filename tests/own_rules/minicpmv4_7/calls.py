"""Calls with prompts of MiniCPM-V 4.7."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from hypothesis import strategies as st
from own_support import minicpm_spec

from vecrope import get_rope_index
from vecrope.testing import conversations, token_soup

UPSTREAMS = ("transformers", "sglang", "vllm")

each_upstream = pytest.mark.parametrize("upstream", UPSTREAMS)


def rope_index(prompt, *, by_types=False, **changes):
    arguments = prompt.arguments()
    if not by_types:
        arguments["mm_token_type_ids"] = None
    return get_rope_index(spec=prompt.spec, **{**arguments, **changes})


def hostile(spec):
    soups = (token_soup(spec), token_soup(spec, zero_grids=True), token_soup(spec, fit=False))
    return st.one_of(conversations(spec), *soups)


# transformers, live


@cache
def transformers_model(mode):
    from transformers.models.minicpmv4_7.modeling_minicpmv4_7 import MiniCPMV4_7Model

    rule = minicpm_spec("transformers").own_rule
    names = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
    ids = {name: getattr(rule, name) for name in names}
    # The methods that give positions need a configuration, and no weights.
    model = object.__new__(MiniCPMV4_7Model)
    torch.nn.Module.__init__(model)
    model.config = SimpleNamespace(downsample_mode=mode, **ids)
    return model


def without_zeros(sizes):
    return None if sizes is None else sizes[sizes.any(1)]


# Specs


IDS = {
    "image_start_id": 1,
    "image_end_id": 2,
    "slice_start_id": 3,
    "slice_end_id": 4,
    "newline_id": 5,
}
