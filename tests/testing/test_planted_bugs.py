"""Bugs that are planted are found, and shrunk to a few tokens."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given, settings

from tests.testing.searching import TRANSFORMERS, matches, smallest
from vecrope.testing import Prompt, assert_matches, conversations


def small_rope_index(
    input_ids,
    mm_token_type_ids,
    image_grid_thw,
    video_grid_thw,
    attention_mask,
    *,
    span=max,
    per_row=False,
    masking=True,
):
    """Answer well-formed prompts under transformers' convention; the last three plant bugs."""
    frames = (
        [] if video_grid_thw is None else video_grid_thw.repeat_interleave(video_grid_thw[:, 0], 0)
    )
    items = {1: [] if image_grid_thw is None else image_grid_thw.tolist()}
    items[2] = [[1, h, w] for _, h, w in (frame.tolist() for frame in frames)]
    position_ids = torch.zeros(3, *input_ids.shape, dtype=torch.int64)
    rope_deltas = torch.zeros(len(input_ids), 1, dtype=torch.int64)
    pending = {kind: iter(grid_thw) for kind, grid_thw in items.items()}
    for row, types in enumerate(mm_token_type_ids):
        if per_row:
            pending = {kind: iter(grid_thw) for kind, grid_thw in items.items()}
        kept = torch.ones_like(types).bool()
        if attention_mask is not None and masking:
            kept = attention_mask[row].bool()
        blocks = []
        start = 0
        for kind, run in itertools.groupby(types[kept].tolist()):
            if kind == 0:
                length = len(list(run))
                blocks.append(torch.arange(length).expand(3, -1) + start)
                start += length
            else:
                t, h, w = next(pending[kind])
                blocks.append(
                    torch.cartesian_prod(*map(torch.arange, (t, h // 2, w // 2))).T + start
                )
                start += span(h // 2, w // 2)
        position_ids[:, row, kept] = torch.cat(blocks, dim=1)
        rope_deltas[row] = position_ids[:, row, kept].max() + 1 - kept.sum()
    return position_ids, rope_deltas


@given(prompt=conversations(TRANSFORMERS))
def test_the_function_the_bugs_are_planted_in_matches(prompt):
    assert_matches(small_rope_index, prompt)


@pytest.mark.parametrize(
    ("bug", "shape"),
    [
        pytest.param({"span": lambda h, w: max(h, w) + 1}, (1, 3), id="a span one too large"),
        pytest.param({"span": lambda _, w: w}, (1, 4), id="a span that forgets the height"),
        pytest.param({"per_row": True}, (2, 4), id="a counter reset in each row"),
        pytest.param({"masking": False}, (1, 2), id="a forgotten mask"),
    ],
)
def test_a_planted_bug_is_shrunk_to_a_few_tokens(bug, shape):
    buggy = partial(small_rope_index, **bug)
    found = smallest(conversations(TRANSFORMERS), lambda prompt: not matches(buggy, prompt))
    assert found.input_ids.shape == shape


def test_given_reports_the_smallest_prompt():
    buggy = partial(small_rope_index, masking=False)

    @settings(database=None, derandomize=True)
    @given(prompt=conversations(TRANSFORMERS))
    def check(prompt):
        assert_matches(buggy, prompt)

    with pytest.raises(AssertionError) as failure:
        check()
    smallest_prompt = Prompt.from_symbols(TRANSFORMERS, ["tt"], mask=["10"])
    assert f"prompt={smallest_prompt!r}" in "\n".join(failure.value.__notes__)
