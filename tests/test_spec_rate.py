"""The rate of a rule that counts whole steps."""

from dataclasses import replace

import pytest

from vecrope import MRopeSpec


def test_a_rule_of_whole_steps_takes_no_fraction_a_second():
    spec = MRopeSpec.for_model("qwen2_5_vl", convention="sglang")
    with pytest.raises(ValueError, match=r"must be whole with time_dtype 'int64', got 1\.5"):
        replace(spec, time_dtype="int64", tokens_per_second=1.5)
