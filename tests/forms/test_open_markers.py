"""Rows that go on from others, whose markers are still open."""

import pytest
import torch
from support import spec_of

from vecrope.forms.eager import eager_rope_index
from vecrope.forms.static import static_rope_index
from vecrope.inputs import Inputs
from vecrope.testing import Prompt

FORMS = {
    "eager": eager_rope_index,
    "static": lambda inputs, spec: static_rope_index(inputs, spec, validate=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "rows", "open_markers", "message"),
    [
        pytest.param(("glm4v", "sglang"), ["IIt", "<It"], [1, 0], "row 0 holds", id="last"),
        pytest.param(("glm4v", "sglang"), ["IIt", "]It"], [1, 1], "row 0 holds", id="last, closed"),
        pytest.param(("glm4v", "transformers"), ["IIt", "]It"], [2, 1], "row 0 holds", id="count"),
        pytest.param(("qwen3_vl", "sglang"), ["VVt", "<It"], [1, 0], "row 0, video", id="adjacent"),
    ],
)
def test_markers_in_front_of_a_row_tell_what_it_begins_with(
    name, rows, open_markers, message, form
):
    spec = spec_of(*name)
    prompt = Prompt.from_symbols(spec, rows, image_grid_thw=[[1, 2, 2]], video_grid_thw=[[1, 2, 4]])
    inputs = Inputs(prompt.input_ids, prompt.image_grid_thw, prompt.video_grid_thw)
    with pytest.raises(ValueError, match=message):
        FORMS[form](inputs, spec)
    markers = torch.tensor(open_markers)
    positions, deltas = FORMS[form](inputs._replace(open_markers=markers), spec)
    assert positions[2].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert positions[1].tolist() == [[0, 0, 2], [0, 1, 2]]
    assert deltas.tolist() == [[0], [0]]
