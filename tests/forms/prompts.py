"""Prompts and arguments for calls that are traced."""

import pytest
from support import (
    CONVENTIONS,
    spec_of,
)

from vecrope.testing import Prompt

SPECS = {convention: spec_of("glm4v", convention) for convention in CONVENTIONS}


SGLANG = SPECS["sglang"]


each_validate = pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])


GIVEN = {
    "ids": [],
    "mask": ["attention_mask"],
    "types": ["mm_token_type_ids"],
    "grids": ["image_grid_thw", "video_grid_thw"],
    "all": ["attention_mask", "mm_token_type_ids", "image_grid_thw", "video_grid_thw"],
}


# Sizes that differ from each other and from the grids' three columns: where two are equal at the
# first call, torch compiles for their equality, and once more when it ends.
WARM_UP = Prompt.from_symbols(
    SGLANG,
    ["<II>t[I]", "[ItI]<I>"],
    mask=["11111111", "11111110"],
    image_grid_thw=[[1, 2, 4], [1, 2, 2], [0, 0, 0], [0, 0, 0]],
    video_grid_thw=[[1, 2, 2], [2, 2, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0]],
)
