"""The forms in which a call may be answered, forced, for the tests of `get_rope_index`."""

from dataclasses import replace
from functools import partial
from itertools import count
from unittest import mock

import pytest
from support import CONVENTIONS, spec_of

from vecrope import get_rope_index
from vecrope.forms.eager.write import _STEPS

SPECS = {convention: spec_of("glm4v", convention) for convention in CONVENTIONS}
OTHERS = {
    **{f"glm46v-{convention}": spec_of("glm46v", convention) for convention in CONVENTIONS},
    # No upstream has these rules; they tell the fields of a spec apart.
    "thirds": replace(
        spec_of("glm_ocr", "sglang"),
        image_token_id=0,
        video_start_token_id=2,
        video_end_token_id=1,
        spatial_merge_size=3,
        span_rule="hw",
        padding_value=5,
    ),
    "ids far apart": replace(
        spec_of("glm4v", "transformers"),
        image_token_id=100,
        video_start_token_id=300_000,
        video_end_token_id=7,
    ),
    "unmerged": replace(
        spec_of("glm4v_moe", "transformers"),
        spatial_merge_size=1,
        span_rule="thw",
        padding_value=-7,
    ),
}


def parametrize(name, values):
    return pytest.mark.parametrize(name, values.values(), ids=values.keys())


def eager_wide(*args, **arguments):
    """Call the eager form with steps in four bytes, as for the largest of pictures."""
    with mock.patch("vecrope.forms.eager.write._STEPS", _STEPS[-1:]):
        return get_rope_index(*args, form="eager", **arguments)


static_rope_index = partial(get_rope_index, form="static")

# Counts calls, so that each draws a prompt that no cache has seen.
UNSEEN = count(1)

FORMS = {
    "eager": get_rope_index,
    "eager, steps in four bytes": eager_wide,
    "static": static_rope_index,
}
each_form = parametrize("form", FORMS)
each_convention = parametrize("spec", SPECS)


def special_ids(spec):
    return spec.image_token_id, spec.video_start_token_id, spec.video_end_token_id
