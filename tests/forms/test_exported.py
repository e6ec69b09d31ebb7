import pytest
import torch
from hypothesis import assume, given
from support import (
    assert_no_answer,
    assert_same,
    fitting,
    grid_tensor,
    kept,
    misfitting,
    rope_index,
)
from torch.export import Dim

from tests.forms.prompts import SGLANG, SPECS, WARM_UP
from vecrope import get_rope_index

each_convention = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


# torch.export


class RopeIndex(torch.nn.Module):
    def __init__(self, spec, **options):
        super().__init__()
        self.spec, self.options = spec, options

    def forward(self, input_ids, attention_mask, image_grid_thw, video_grid_thw):
        return get_rope_index(
            input_ids,
            self.spec,
            attention_mask=attention_mask,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            **self.options,
        )


def exported(spec, **options):
    rows, tokens = Dim("rows"), Dim("tokens")
    program = torch.export.export(
        RopeIndex(spec, **options),
        tuple(export_arguments(WARM_UP).values()),
        dynamic_shapes={
            "input_ids": {0: rows, 1: tokens},
            "attention_mask": {0: rows, 1: tokens},
            "image_grid_thw": {0: Dim("images")},
            "video_grid_thw": {0: Dim("videos")},
        },
    )
    module = program.module()
    return lambda prompt: module(*export_arguments(prompt).values())


def export_arguments(prompt):
    none = grid_tensor([])
    return {
        "input_ids": prompt.input_ids,
        "attention_mask": kept(prompt).long(),
        "image_grid_thw": none if prompt.image_grid_thw is None else prompt.image_grid_thw,
        "video_grid_thw": none if prompt.video_grid_thw is None else prompt.video_grid_thw,
    }


@each_convention
def test_exported_equals_eager(spec):
    function = exported(spec, validate=False)

    @given(fitting(spec))
    def check(prompt):
        assert_same(function(prompt), prompt.expected())

    check()


def test_exported_with_checks_answers_what_fits_and_nothing_else():
    function = exported(SGLANG)

    @given(fitting(SGLANG) | misfitting(SGLANG))
    def check(prompt):
        try:
            expected = rope_index(prompt)
        except ValueError as error:
            # Whether a grid is sound by itself is not asked under tracing, only whether it fits.
            assume("must be positive" not in str(error) and "divisible" not in str(error))
            assert_no_answer(function(prompt))
        else:
            assert_same(function(prompt), expected)

    check()
