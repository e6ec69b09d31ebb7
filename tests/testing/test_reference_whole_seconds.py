"""Seconds that are cut to whole numbers, as in some releases of transformers."""

from dataclasses import replace

import pytest
from oracles import spec_of

from vecrope import get_rope_index
from vecrope.testing import Prompt, assert_matches


@pytest.mark.parametrize(("seconds", "times"), [(1.9, [1, 3]), (0.5, [1, 1]), (2.0, [1, 5])])
def test_the_fraction_of_seconds_is_cut(seconds, times):
    spec = spec_of("qwen2_5_vl", "transformers")
    spec = replace(spec, time_dtype="int64", tokens_per_second=2)
    prompt = Prompt.from_symbols(
        spec, ["<VV>"], video_grid_thw=[[2, 2, 2]], second_per_grid_ts=[seconds]
    )
    positions, _ = prompt.expected()
    assert positions[0, 0, 1:3].tolist() == times
    assert_matches(lambda **arguments: get_rope_index(spec=spec, **arguments), prompt)
