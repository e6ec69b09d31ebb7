"""What converts an array is said where one is given."""

import numpy as np
import pytest

from vecrope import MRopeSpec, get_rope_index


@pytest.mark.parametrize("array", [np.ones((1, 3), dtype=np.int64), np.int64(1)])
def test_an_array_is_refused_with_the_call_that_makes_a_tensor(array):
    spec = MRopeSpec.for_model("glm4v", convention="sglang")
    name = type(array).__name__
    message = rf"must be a tensor, got {name}; torch\.as_tensor\(input_ids\) makes one"
    with pytest.raises(TypeError, match=message):
        get_rope_index(array, spec)
