"""Calls on a CUDA device."""

import pytest
from hypothesis import settings
from support import (
    CONVENTIONS,
    spec_of,
)

from vecrope.testing import Prompt

SPECS = {convention: spec_of("glm4v", convention) for convention in CONVENTIONS}
each_convention = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
few_examples = settings(max_examples=25, deadline=None)


def on_cuda(arguments):
    return {name: None if value is None else value.cuda() for name, value in arguments.items()}


def a_prompt(spec=SPECS["sglang"]):
    return Prompt.from_symbols(
        spec,
        ["t<IIIIII>tt", "[<II>t<II>]", "tIIttttt[tt"],
        mask=["1" * 11, "1" * 11, "01111111110"],
        image_grid_thw=[[1, 4, 6], [0, 0, 0], [1, 2, 4]],
        video_grid_thw=[[2, 2, 4]],
    )
