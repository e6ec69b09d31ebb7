"""Calls that are refused, and what they are refused with."""

import re

import pytest
import support
import torch

from vecrope import MRopeSpec, get_rope_index
from vecrope.testing import Prompt

SGLANG = MRopeSpec.for_model("glm4v", convention="sglang")


GRID = torch.tensor([[1, 2, 4]])


FORMS = pytest.mark.parametrize("form", [{}, {"form": "static"}], ids=["eager", "static"])


def exactly(message):
    return f"^{re.escape(message)}$"


def rope_index(prompt, **options):
    return get_rope_index(spec=prompt.spec, **{**prompt.arguments(), **options})


def symbols(*rows, images=None, videos=None, mask=None):
    """Return the arguments of a prompt of which no types are given, only ids."""
    prompt = Prompt.from_symbols(
        SGLANG, rows, image_grid_thw=images, video_grid_thw=videos, mask=mask
    )
    return {**prompt.arguments(), "mm_token_type_ids": None, "spec": SGLANG}


PACKED = {"input_ids": torch.zeros(4, dtype=torch.int64), "spec": SGLANG}


def packed(bounds, **arguments):
    return {**PACKED, "cu_seqlens": torch.tensor(bounds), **arguments}


def refusal(prompt, **options):
    return support.refusal(prompt, rope_index, **options)
