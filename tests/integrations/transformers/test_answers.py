"""A patched model answers what transformers' own method does."""

from dataclasses import replace
from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import assert_same, grid_list, kept
from tiny_models import LAYOUTS, spec_of_model

from tests.integrations.transformers.answers import (
    LEFT_OVER,
    answered,
    each_rule,
    grids_are_sound,
    module_of,
    patched_answer,
    prompt_of,
    with_grids_left_over,
)
from vecrope import get_rope_index
from vecrope.integrations.transformers import patched
from vecrope.testing import Prompt, conversations, token_soup

each_family = pytest.mark.parametrize("model_type", LAYOUTS)

# What it answers: what the method of transformers does


def runs_and_blocks(prompt, kind):
    """Return the lengths of one kind's runs, and the tokens of each of its images or frames."""
    runs = []
    for types, keep in zip(prompt.mm_token_type_ids, kept(prompt), strict=True):
        runs += [len(list(run)) for value, run in groupby(types[keep].tolist()) if value == kind]
    merge, merge_t = prompt.spec.spatial_merge_size, prompt.spec.temporal_merge_size
    blocks = []
    for t, h, w in grid_list((None, prompt.image_grid_thw, prompt.video_grid_thw)[kind]):
        area = (h // merge) * (w // merge)
        if kind == 2 and prompt.spec.separate_frames:
            blocks += [area] * t
        else:
            blocks.append((t // merge_t if kind == 2 else t) * area)
    return runs, blocks


def each_run_is_the_next_block(prompt):
    """Say what transformers relies on: where it does not hold, its answer is an accident."""
    for kind in (1, 2):
        runs, blocks = runs_and_blocks(prompt, kind)
        if runs != blocks[: len(runs)]:
            return False
    return True


def seconds_are_sound(prompt):
    seconds = prompt.second_per_grid_ts
    if prompt.spec.video_time != "seconds" or seconds is None:
        return True
    values = torch.as_tensor(seconds, dtype=torch.float64)
    videos = len(grid_list(prompt.video_grid_thw))
    return len(values) >= videos and bool((values.isfinite() & (values >= 0)).all())


def has_a_row_without_tokens(prompt):
    return not bool(kept(prompt).any(1).all())


def has_more_videos_than_tokens_in_a_row(prompt):
    """Which qwen2_5_vl has no default seconds for."""
    if prompt.spec.video_time != "seconds" or prompt.second_per_grid_ts is not None:
        return False
    return len(runs_and_blocks(prompt, 2)[0]) > prompt.input_ids.shape[1]


def assert_alike(prompt):
    ours, theirs = patched_answer(prompt)
    sound = grids_are_sound(prompt) and seconds_are_sound(prompt)
    if sound and each_run_is_the_next_block(prompt):
        assert answered(ours), ours
        if has_a_row_without_tokens(prompt) or has_more_videos_than_tokens_in_a_row(prompt):
            assert not answered(theirs)
        else:
            assert_same(ours, theirs)
    elif not answered(ours):
        assert isinstance(ours, ValueError), ours

    # Else the prompt has frames with nothing between them, or zeros for a grid, which we know.


def cropped(prompt, start, stop):
    """Return the prompt less tokens at both ends, with all of its grids."""

    def crop(values):
        return None if values is None else values[:, start:stop]

    return replace(
        prompt,
        input_ids=crop(prompt.input_ids),
        attention_mask=crop(prompt.attention_mask),
        mm_token_type_ids=crop(prompt.mm_token_type_ids),
    )


@each_family
def test_conversations_are_answered_as_by_transformers(model_type):
    @given(conversations(spec_of_model(model_type)))
    def check(prompt):
        ours, theirs = patched_answer(prompt)
        assert_same(ours, theirs)

    check()


@each_rule
def test_left_over_grids_are_ignored_as_by_transformers(model_type):
    @given(conversations(spec_of_model(model_type)), LEFT_OVER, LEFT_OVER)
    def check(prompt, images, videos):
        ours, theirs = patched_answer(with_grids_left_over(prompt, images, videos))
        if all(t >= prompt.spec.temporal_merge_size for t, _, _ in videos):
            assert_same(ours, theirs)

    check()


@each_rule
def test_cropped_prompts_are_answered_as_by_transformers(model_type):
    @given(conversations(spec_of_model(model_type)), st.data())
    def check(prompt, data):
        seq_len = prompt.input_ids.shape[1]
        start = data.draw(st.integers(0, seq_len - 1))
        stop = data.draw(st.integers(start + 1, seq_len))
        assert_alike(cropped(prompt, start, stop))

    check()


@each_rule
def test_soup_is_answered_as_by_transformers_or_shows_why_not(model_type):
    spec = spec_of_model(model_type)

    @given(
        st.one_of(
            token_soup(spec),
            token_soup(spec, touching=True, zero_grids=True),
            token_soup(spec, fit=False, touching=True, zero_grids=True),
        )
    )
    def check(prompt):
        assert_alike(prompt)

    check()


@pytest.mark.parametrize(
    ("model_type", "rows", "arguments"),
    [
        pytest.param("glm4v", ["tI"], {"image_grid_thw": [[1, 2, 2]] * 2}, id="an image left over"),
        pytest.param("glm4v", ["[I]"], {"video_grid_thw": [[2, 2, 2]]}, id="a frame left over"),
        pytest.param("qwen2_vl", ["tt"], {"video_grid_thw": [[2, 2, 2]]}, id="no video at all"),
        pytest.param("qwen2_vl", ["tIIIIIIt"], {"image_grid_thw": [[1, 5, 7]]}, id="odd sides"),
        pytest.param(
            "qwen2_vl",
            ["ttV"],
            {"image_grid_thw": [[1, 4, 4]], "video_grid_thw": [[1, 2, 2]]},
            id="an image left over before a video",
        ),
    ],
)
def test_what_vecrope_refuses_is_answered_as_by_transformers(model_type, rows, arguments):
    prompt = prompt_of(model_type, *rows, **arguments)
    ours, theirs = patched_answer(prompt)
    assert_same(ours, theirs)
    with pytest.raises(ValueError, match=r"left over|divisible"):
        get_rope_index(spec=prompt.spec, **prompt.arguments())


@pytest.mark.parametrize("value", [2, 0.5, -1, True])
def test_a_token_is_where_the_mask_is_not_0(value):
    prompt = prompt_of("qwen2_vl", "ttIIt", mask=["01111"], image_grid_thw=[[1, 2, 4]])
    mask = prompt.attention_mask * value if value is not True else prompt.attention_mask.bool()
    ours, theirs = patched_answer(replace(prompt, attention_mask=mask))
    assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.uint8])
def test_types_and_grids_of_any_integers(dtype):
    prompt = prompt_of("qwen3_vl", "tIIt", image_grid_thw=[[1, 2, 4]])
    types = prompt.mm_token_type_ids.to(dtype)
    grids = prompt.image_grid_thw.to(torch.int32)
    ours, theirs = patched_answer(replace(prompt, mm_token_type_ids=types, image_grid_thw=grids))
    assert_same(ours, theirs)


def test_positions_are_of_the_dtype_of_the_ids():
    prompt = prompt_of("qwen2_vl", "tIIt", image_grid_thw=[[1, 2, 4]])
    ours, theirs = patched_answer(replace(prompt, input_ids=prompt.input_ids.int()))
    assert_same(ours, theirs)
    assert ours[0].dtype == torch.int32


def test_types_are_believed_and_not_the_ids():
    prompt = prompt_of("qwen2_vl", "tIVt", image_grid_thw=[[1, 2, 2]], video_grid_thw=[[1, 2, 2]])
    ours, theirs = patched_answer(replace(prompt, input_ids=torch.zeros_like(prompt.input_ids)))
    assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_seconds_are_rounded_as_in_their_dtype(dtype):
    """A batch that is cast to the model's dtype has its seconds cast, too."""
    grids = [[300, 2, 2], [40, 2, 2], [9, 2, 2]]
    rows = "t".join("V" * t for t, _, _ in grids)
    prompt = prompt_of(
        "qwen2_5_vl",
        rows,
        video_grid_thw=grids,
        second_per_grid_ts=torch.tensor([0.08, 2 / 3, 2 / 0.3]).to(dtype),
    )
    ours, theirs = patched_answer(prompt)
    assert_same(ours, theirs)


@pytest.mark.parametrize("seconds", [[0.5, 0.7], torch.tensor([0.5, 0.7])], ids=["list", "tensor"])
def test_seconds_beyond_the_videos_are_left_over(seconds):
    for arguments in ({"video_grid_thw": [[3, 2, 2]]}, {}):
        rows = "tVVVt" if arguments else "tt"
        prompt = prompt_of("qwen2_5_vl", rows, second_per_grid_ts=seconds, **arguments)
        ours, theirs = patched_answer(prompt)
        assert_same(ours, theirs)


def test_what_else_the_model_is_called_with_is_ignored():
    prompt = prompt_of("qwen2_vl", "tIIt", image_grid_thw=[[1, 2, 4]])
    module = module_of("qwen2_vl")
    expected = module.get_rope_index(**prompt.arguments())
    with patched(module):
        assert_same(
            module.get_rope_index(**prompt.arguments(), second_per_grid_ts=3, use_cache=True),
            expected,
        )


@pytest.mark.parametrize(
    ("model_type", "rows", "arguments"),
    [
        pytest.param(
            "qwen2_vl", ["tII"], {"image_grid_thw": [[1, 2, 2]] * 2}, id="touching images"
        ),
        pytest.param("glm4v", ["[II]"], {"video_grid_thw": [[2, 2, 2]]}, id="touching frames"),
        pytest.param("qwen2_vl", ["tt", "tt"], {"mask": ["11", "00"]}, id="a row without tokens"),
        pytest.param("qwen2_vl", ["V", "V"], {"video_grid_thw": [[1, 2, 2]] * 2}, id="many videos"),
    ],
)
def test_where_transformers_fails_there_is_the_answer_of_the_reference(model_type, rows, arguments):
    spec = spec_of_model(model_type)
    prompt = Prompt.from_symbols(spec, rows, **arguments)
    ours, theirs = patched_answer(prompt)
    assert_same(ours, prompt.expected())
    if "V" not in rows:
        assert not answered(theirs)


def test_a_further_grid_that_fills_a_run_is_numbered_where_transformers_spreads_one_position():
    prompt = prompt_of("qwen2_vl", "III", image_grid_thw=[[1, 2, 2], [1, 2, 4]])
    ours, theirs = patched_answer(prompt)
    assert_same(ours, prompt.expected())
    assert theirs[0].tolist() == [[[0, 0, 0]]] * 3


def test_int32_ids_with_a_mask_which_transformers_cannot_write():
    prompt = prompt_of("qwen2_vl", "tII", mask=["111"], image_grid_thw=[[1, 2, 4]])
    ours, theirs = patched_answer(replace(prompt, input_ids=prompt.input_ids.int()))
    assert isinstance(theirs, RuntimeError)
    assert_same(ours, (prompt.expected()[0].int(), prompt.expected()[1]))
