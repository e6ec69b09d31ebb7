"""Answers of patched modules and of transformers' own."""

from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from support import grid_list
from tiny_models import spec_of_model, tiny_model

from vecrope.integrations.transformers import patched
from vecrope.testing import Prompt

# One of each rule.
RULES = ("glm4v", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "ernie4_5_vl_moe")
each_rule = pytest.mark.parametrize("model_type", RULES)


def module_of(model_type):
    """Return the module of a tiny model that has the method."""
    return tiny_model(model_type).model


def prompt_of(model_type, *rows, **arguments):
    return Prompt.from_symbols(spec_of_model(model_type), rows, **arguments)


def patched_answer(prompt, module=None, **options):
    """Return (ours, theirs): each an answer, or the exception that was raised."""
    module = module or module_of(prompt.spec.model_type)
    theirs = outcome(module, prompt)
    with patched(module, **options):
        return outcome(module, prompt), theirs


def outcome(module, prompt):
    try:
        return module.get_rope_index(**prompt.arguments())
    except Exception as error:
        return error


def answered(result):
    return isinstance(result, tuple)


def grids_are_sound(prompt):
    """Say whether every grid, used or not, is one."""
    grids = grid_list(prompt.image_grid_thw) + grid_list(prompt.video_grid_thw)
    merge, merge_t = prompt.spec.spatial_merge_size, prompt.spec.temporal_merge_size
    deep = all(grid[0] >= merge_t for grid in grid_list(prompt.video_grid_thw))
    return deep and all(t > 0 and h >= merge and w >= merge for t, h, w in grids)


def with_grids_left_over(prompt, images, videos):
    def more(grids, others):
        return torch.tensor([*grid_list(grids), *others]).reshape(-1, 3) if others else grids

    seconds = prompt.second_per_grid_ts
    if seconds is not None and videos:
        extra = [0.5] * len(videos)
        if torch.is_tensor(seconds):
            seconds = torch.cat((seconds, seconds.new_tensor(extra)))
        else:
            seconds = [*seconds, *extra]
    return replace(
        prompt,
        image_grid_thw=more(prompt.image_grid_thw, images),
        video_grid_thw=more(prompt.video_grid_thw, videos),
        second_per_grid_ts=seconds,
    )


# With sides that a merge size of 2 does not divide.
LEFT_OVER = st.lists(st.sampled_from([[1, 4, 4], [2, 2, 6], [3, 5, 3]]), max_size=2)
