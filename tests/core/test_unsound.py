"""What is not sound by itself is told without reading it, as it is where values are read."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import each_rule
from support import assert_same, grid_tensor, rope_index, spec_of

from vecrope import checks
from vecrope.core.faults import unsound
from vecrope.forms.eager.items import read_items
from vecrope.inputs import Inputs
from vecrope.testing import Prompt

IDS = torch.ones((2, 3), dtype=torch.int64)
SIZES = st.one_of(st.integers(-4, 9), st.sampled_from([64, 2**12, 2**20, 2**40]))
GRIDS = st.lists(st.one_of(st.just([0, 0, 0]), st.lists(SIZES, min_size=3, max_size=3)), max_size=3)
SOUND_GRIDS = st.lists(st.sampled_from([[0, 0, 0], [1, 12, 24], [2, 24, 12]]), max_size=3)
SECONDS = st.sampled_from([0.0, 0.5, 1.0, -0.5, 1e4, 1e9, 1e308, math.inf, math.nan])


def is_refused(inputs, spec):
    try:
        read_items(inputs, spec)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("form", ["eager", "static"])
def test_seconds_of_a_video_without_frames_are_any_number(form):
    prompt = Prompt.from_symbols(
        spec_of("qwen2_5_vl", "transformers"),
        ["tVVt"],
        video_grid_thw=[[0, 0, 0], [2, 2, 2]],
        second_per_grid_ts=[1e308, 1.0],
    )
    assert_same(rope_index(prompt, form=form), prompt.expected())


@pytest.mark.parametrize("default", [None, 1.0])
def test_seconds_that_are_missing(default):
    spec = replace(spec_of("qwen2_5_vl", "transformers"), default_seconds=default)
    inputs = Inputs(IDS, video_grid_thw=torch.tensor([[2, 2, 2]]))
    assert unsound(inputs, spec).item() is is_refused(inputs, spec) is (default is None)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([2.0**28 - 1], False),
        ([2.0**28], True),
        ([2.0**27, 2.0**27 - 1], False),
        ([2.0**27, 2.0**27], True),  # in all
        (torch.tensor([16368.0]).half(), False),
        (torch.tensor([16376.0]).half(), True),
    ],
    ids=str,
)
def test_frames_times_their_seconds_stay_below_a_limit(seconds, expected):
    spec = spec_of("qwen2_5_vl", "transformers")
    assert (spec.tokens_per_second, spec.time_dtype) == (4, "given")
    videos = torch.tensor([[1, 2, 2]] * len(seconds))
    inputs = Inputs(IDS, video_grid_thw=videos, second_per_grid_ts=seconds)
    assert unsound(inputs, spec).item() is is_refused(inputs, spec) is expected


@each_rule
def test_grids_and_seconds(spec):
    @given(GRIDS | SOUND_GRIDS, GRIDS | SOUND_GRIDS, st.data())
    def check(images, videos, data):
        inputs = Inputs(
            IDS, grid_tensor(images), grid_tensor(videos), round_grid_sides=data.draw(st.booleans())
        )
        if spec.video_time == "seconds" and data.draw(st.booleans()):
            of_videos = st.lists(SECONDS, min_size=len(videos), max_size=len(videos))
            dtypes = st.sampled_from([None, torch.float16, torch.float32, torch.float64])
            seconds, dtype = data.draw(of_videos), data.draw(dtypes)
            if dtype is not None:
                seconds = torch.tensor(seconds, dtype=dtype)
            inputs = inputs._replace(second_per_grid_ts=seconds)
        assert unsound(inputs, spec).item() is is_refused(inputs, spec)

    check()


@given(st.lists(st.integers(-1, 7), min_size=1, max_size=5))
def test_bounds_of_sequences(bounds):
    bounds = torch.tensor(bounds)
    try:
        checks.check_cu_seqlens(bounds, 6)
        refused = False
    except ValueError:
        refused = True
    inputs = Inputs(IDS.view(-1), cu_seqlens=bounds)
    assert unsound(inputs, spec_of("glm4v", "sglang")).item() is refused


@pytest.mark.parametrize(
    ("mask", "types", "expected"),
    [
        ([1, 0, 1, 1, 1, 1], [0, 7, 1, 2, 0, 0], False),  # what stands at a masked token is nothing
        ([1, 2, 1, 1, 1, 1], [0] * 6, True),
        ([1, -1, 1, 1, 1, 1], [0] * 6, True),
        ([1] * 6, [0, 3, 1, 2, 0, 0], True),
        (None, [0, -1, 1, 2, 0, 0], True),
        (None, [0, 1, 2, 2, 0, 0], False),
        (None, None, False),
    ],
)
def test_codes(mask, types, expected):
    mask, types = (
        None if codes is None else torch.tensor(codes).view(2, 3) for codes in (mask, types)
    )
    inputs = Inputs(IDS, attention_mask=mask, mm_token_type_ids=types)
    assert unsound(inputs, spec_of("glm4v", "transformers")).item() is expected
    if mask is not None and torch.equal(mask, mask.bool().long()):
        inputs = inputs._replace(attention_mask=mask.bool())
        assert unsound(inputs, spec_of("glm4v", "transformers")).item() is expected
