"""A patched model, traced and compiled."""

import pytest
import torch
from hypothesis import assume, given
from support import assert_no_answer, assert_same
from tiny_models import spec_of_model
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from tests.integrations.transformers.answers import (
    LEFT_OVER,
    answered,
    each_rule,
    grids_are_sound,
    module_of,
    outcome,
    patched_answer,
    prompt_of,
    with_grids_left_over,
)
from vecrope.forms.static import static_rope_index
from vecrope.inputs import Inputs
from vecrope.integrations.transformers import patched
from vecrope.testing import conversations

# Static and traced


@each_rule
@pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])
def test_left_over_grids_are_ignored_by_the_static_form(model_type, validate):
    module = module_of(model_type)

    @given(conversations(spec_of_model(model_type)), LEFT_OVER, LEFT_OVER)
    def check(prompt, images, videos):
        changed = with_grids_left_over(prompt, images, videos)
        assume(grids_are_sound(changed))
        theirs = outcome(module, changed)
        ours = static_rope_index(
            Inputs(**changed.arguments(), allow_unused_grids=True, round_grid_sides=True),
            changed.spec,
            validate=validate,
        )
        assert_same(ours, theirs)

    check()


TWO_ROWS = {
    "few": (["tt<II>t", "t<II>tt"], [[1, 2, 4]] * 3),
    "more": (["tt<IIII>tt<II>t", "t<II>ttttttttttt"], [[1, 4, 4], [1, 2, 4], [1, 2, 4]]),
}


def two_rows(model_type, name):
    rows, grids = TWO_ROWS[name]
    width = max(map(len, rows))
    rows = [row.ljust(width, "t") for row in rows]
    return prompt_of(model_type, *rows, mask=["1" * width] * 2, image_grid_thw=grids)


@pytest.mark.parametrize("target", [Qwen2VLModel, None], ids=["class", "instance"])
def test_compiled_it_answers_the_same(target):
    module = module_of("qwen2_vl")
    with patched(target or module):
        function = torch.compile(
            lambda **arguments: module.get_rope_index(**arguments),
            fullgraph=True,
            dynamic=True,
            backend="eager",
        )
        for name in TWO_ROWS:
            arguments = two_rows("qwen2_vl", name).arguments()
            assert_same(function(**arguments), module.get_rope_index(**arguments))
        # One grid more than there are images is one left over, but half an image is none.
        arguments["mm_token_type_ids"] = arguments["mm_token_type_ids"].clone()
        arguments["mm_token_type_ids"][0, 3] = 0
        assert_no_answer(function(**arguments))


# Of a device that is not the CPU any build of torch has fake tensors.
def test_unchecked_it_depends_on_no_value():
    with FakeTensorMode(), patched(module_of("qwen2_5_vl"), validate=False) as module:
        ids = torch.empty((2, 7), dtype=torch.int64, device="meta")
        grids = torch.empty((3, 3), dtype=torch.int64, device="meta")
        position_ids, rope_deltas = module.get_rope_index(
            input_ids=ids,
            mm_token_type_ids=torch.empty_like(ids),
            image_grid_thw=grids,
            video_grid_thw=grids,
            second_per_grid_ts=torch.empty(3, device="meta"),
            attention_mask=torch.empty_like(ids),
        )
    assert (position_ids.shape, rope_deltas.shape) == ((3, 2, 7), (2, 1))
    assert (position_ids.device.type, rope_deltas.device.type) == ("meta", "meta")


def test_validate_false_checks_no_value():
    prompt = prompt_of("qwen2_vl", "tI", image_grid_thw=[[1, 4, 4]])
    ours, _ = patched_answer(prompt, validate=False)
    assert answered(ours)
