import re

import pytest
from hypothesis import given
from own_support import SPECS, each_spec
from support import grid_list

from tests.testing.searching import never_drawn, smallest
from vecrope import MRopeSpec
from vecrope.families import rules
from vecrope.testing import Prompt, Refusal, conversations, token_soup

# The strategies


def per_row(prompt):
    return [] if prompt.images_per_sample is None else prompt.images_per_sample.tolist()


def any_grid(prompt, condition):
    return any(condition(*grid) for grid in grid_list(prompt.image_grid_thw))


FEATURES = {
    "several rows": lambda p: len(p.input_ids) > 1,
    "several images": lambda p: len(grid_list(p.image_grid_thw)) > 1,
    "a wide image": lambda p: any_grid(p, lambda _, h, w: h < w),
    "a tall image": lambda p: any_grid(p, lambda _, h, w: h > w),
    "no grids": lambda p: p.image_grid_thw is None,
}


MASKED = {
    "no mask": lambda p: p.attention_mask is None,
    "left padding": lambda p: p.mask[0].startswith("0"),
    "right padding": lambda p: p.mask[0].endswith("0"),
    "a hole": lambda p: "101" in p.mask[0],
}


OWN = {
    "hunyuan_vl of 3 axes": MASKED,
    "glm_image, transformers": {
        **MASKED,
        "all grids are a row's": lambda p: not per_row(p) and grid_list(p.image_grid_thw),
        "a row without grids": lambda p: 0 in per_row(p),
        "nothing to generate": lambda p: (
            grid_list(p.image_grid_thw) and len(p.expected_decode()[0]) == 1
        ),
        "two images to generate": lambda p: (
            "<" not in "".join(p.symbols) and any(n > 1 for n in per_row(p))
        ),
    },
    "isaac": {
        **MASKED,
        "touching images": lambda p: (
            0
            < sum(len(re.findall("I+", row)) for row in p.symbols)
            < len(grid_list(p.image_grid_thw))
        ),
    },
    "bailing": {"a video": lambda p: p.video_grid_thw is not None},
    "bailing with timestamps": {"frames": lambda p: p.video_grid_thw is not None},
}


@pytest.mark.parametrize("name", OWN)
def test_every_feature_occurs(name):
    assert never_drawn(conversations(SPECS[name]), {**FEATURES, **OWN[name]}) == []


@each_spec
def test_misfits_fit_and_do_not(spec):
    outcomes = {"refused": is_refused, "answered": lambda prompt: not is_refused(prompt)}
    assert never_drawn(token_soup(spec), outcomes) == []


def is_refused(prompt):
    try:
        prompt.expected()
    except Refusal:
        return True
    return False


@pytest.mark.parametrize("name", ["hunyuan_vl of 3 axes", "glm_image, sglang", "isaac", "bailing"])
def test_prompts_shrink_to_one_text_token(name):
    prompt = smallest(conversations(SPECS[name]), lambda _: True)
    assert (prompt.symbols, prompt.attention_mask) == (["t"], None)


@each_spec
def test_a_prompts_repr_builds_it_again(spec):
    @given(conversations(spec))
    def check(prompt):
        names = {**vars(rules), "Prompt": Prompt, "MRopeSpec": MRopeSpec}
        again = eval(repr(prompt), names)
        assert again.spec == spec
        assert repr(again) == repr(prompt)

    check()
