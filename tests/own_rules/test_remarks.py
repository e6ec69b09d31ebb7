"""What a message adds where the numbers show what is wrong: pixels, placeholders not expanded."""

import pytest
from own_support import SPECS, minicpm_spec

from vecrope import get_rope_index
from vecrope.testing import Prompt

# Of each family a picture of 2 x 3 tokens, the tokens before it, and the argument with its size.
PICTURES = {
    "hunyuan_vl of 4 axes": ("t", 8, "image_grid_thw", [1, 4, 6]),
    "glm_image, transformers": ("t<", 6, "image_grid_thw", [1, 2, 3]),
    "isaac": ("t", 6, "image_grid_thw", [1, 4, 6]),
    "bailing": ("t<", 6, "image_grid_thw", [1, 4, 6]),
    "minicpmv4_7": ("t(", 6, "target_sizes", [8, 12]),
}
each_picture = pytest.mark.parametrize("name", PICTURES)


def call(name, tokens, scale):
    before, needed, argument, size = PICTURES[name]
    spec = SPECS[name] if name in SPECS else minicpm_spec("transformers")
    size = [*size[:-2], *(side * scale for side in size[-2:])]
    behind = {"<": ">", "(": ")", "t": ""}[before[-1]]
    row = before + "I" * (tokens or needed) + behind + "t"
    prompt = Prompt.from_symbols(spec, [row], **{argument: [size]})
    arguments = {**prompt.arguments(), "mm_token_type_ids": None}
    return get_rope_index(spec=spec, **arguments)


@each_picture
@pytest.mark.parametrize("patch", [14, 16])
def test_sizes_in_pixels_are_recognised(name, patch):
    call(name, None, 1)
    argument = PICTURES[name][2]
    with pytest.raises(ValueError, match=rf"\({argument} seems to count pixels; it counts patches"):
        call(name, None, patch)


@each_picture
def test_placeholders_that_were_not_expanded_are_recognised(name):
    with pytest.raises(ValueError, match="inside the image, or never expanded by the processor"):
        call(name, 1, 1)


@each_picture
def test_other_misfits_get_no_such_remark(name):
    with pytest.raises(ValueError, match=r"truncated inside the image\?$"):
        call(name, 2, 1)
