"""What the references of own rules refuse."""

import pytest
from own_support import SPECS

from vecrope.testing import Prompt, Refusal


@pytest.mark.parametrize(
    ("name", "row", "images", "message"),
    [
        ("isaac", "tI", [], "row 0 has tokens that no grid is left for"),
        (
            "hunyuan_vl of 4 axes",
            "<II>t<II>",
            [[1, 2, 2]],
            "row 0 has a run of image tokens that no grid is left for",
        ),
        ("bailing", "tIt", [[1, 2, 2]], "row 0 has no start marker before token 1"),
    ],
)
def test_placeholders_that_do_not_fit(name, row, images, message):
    prompt = Prompt.from_symbols(SPECS[name], [row], image_grid_thw=images)
    with pytest.raises(Refusal, match=message):
        prompt.expected()
