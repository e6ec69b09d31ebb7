"""Exported with checks: every form answers what fits, and gives no answer to what does not.

A program is exported here for the shapes of one prompt. Dynamic shapes, and the families that share
a rule, are in `test_static.py` and `own_rules/omni/test_static.py`.
"""

import pytest
import torch
from omni_support import spec_of as omni_spec_of
from own_support import SPECS as OWN_SPECS
from own_support import ids_of, minicpm_spec
from support import assert_same, spec_of

from tests.own_rules.minicpmv4_7.batches import arguments_of
from vecrope import get_decode_position_ids, get_rope_index
from vecrope.testing import Prompt


class Program(torch.nn.Module):
    """A function of tensors, all of whose other arguments are fixed."""

    def __init__(self, function, spec, options):
        super().__init__()
        self.function, self.spec, self.options = function, spec, options

    def forward(self, tensors):
        return self.function(spec=self.spec, **tensors, **self.options)


def check(spec, fitting, misfit, *, function=get_rope_index, least=None, **options):
    """Assert what a program does with the tensors it was exported for, and others like them."""
    module = Program(function, spec, options)
    program = torch.export.export(module, (fitting,)).module()
    assert_same(program(fitting), module(fitting))
    with pytest.raises(ValueError, match=r"row|max_|token"):
        module(misfit)
    first, second = program(misfit)
    assert torch.equal(first, torch.full_like(first, -1))
    if least is None:
        least = torch.iinfo(torch.int32 if second.dtype == torch.int32 else torch.int64).min
    assert torch.equal(second, torch.full_like(second, least))


def own_arguments(row, grid):
    return {"input_ids": ids_of(row), "image_grid_thw": torch.tensor([grid])}


@pytest.mark.parametrize(("name", "spec"), OWN_SPECS.items(), ids=OWN_SPECS)
def test_families_of_their_own_rule(name, spec):
    row = "tt<IIIIIIII>t" if name.startswith("hunyuan") else "tt<IIII>tt"
    merge = 1 if name.startswith("glm") else 2
    fitting = own_arguments(row, (1, 2 * merge, 2 * merge))
    check(spec, fitting, own_arguments(row, (1, 2 * merge, 4 * merge)))


@pytest.mark.parametrize("convention", ["transformers", "sglang"])
def test_the_images_that_glm_image_is_to_generate(convention):
    spec = OWN_SPECS[f"glm_image, {convention}"]

    def arguments(height):
        return {
            "input_ids": ids_of("ttt<"),
            "image_grid_thw": torch.tensor([[1, height, 2]]),
        }

    options = {"function": get_decode_position_ids, "max_decode_tokens": 7, "least": -1}
    check(spec, arguments(2), arguments(4), **options)
    misread = {**arguments(2), "input_ids": ids_of("t>t<")}
    check(spec, arguments(2), misread, **options)


@pytest.mark.parametrize("upstream", ["transformers", "sglang", "vllm"])
def test_pictures_of_minicpm(upstream):
    spec = minicpm_spec(upstream)
    row = f"t({'I' * 8})tt"
    fitting, misfit = (
        arguments_of(Prompt.from_symbols(spec, [row], target_sizes=[size]), by_types=False)
        for size in ([8, 16], [4, 16])
    )
    check(spec, *(
        {name: value for name, value in given.items() if value is not None}
        for given in (fitting, misfit)
    ))  # fmt: skip


def omni_arguments(spec, seconds, **changes):
    prompt = Prompt.from_symbols(
        spec, ["t<VV>t"], video_grid_thw=[[2, 2, 2]], second_per_grids=[seconds], **changes
    )
    return {
        "input_ids": prompt.input_ids,
        "video_grid_thw": prompt.video_grid_thw,
        "second_per_grids": prompt.second_per_grids,
    }


@pytest.mark.parametrize("model_type", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_omni_families(model_type):
    spec = omni_spec_of(model_type, "transformers")
    fitting = omni_arguments(spec, 1.0)
    misfit = {**fitting, "video_grid_thw": torch.tensor([[1, 2, 2]])}
    check(spec, fitting, misfit)


def test_positions_beyond_what_float32_counts():
    spec = omni_spec_of("qwen3_omni_moe", "transformers")
    check(spec, omni_arguments(spec, 1.0), omni_arguments(spec, 2.0**20))


@pytest.mark.parametrize(
    "numbers",
    [[[2, 2, 1, 1]], [[1, -1, 1, 1]], [[0, 0, 0, 0]], [[1, 2, 3, 4]]],
    ids=["back", "negative", "none", "too many"],
)
def test_rows_of_several_sequences(numbers):
    spec = spec_of("qwen2_vl", "transformers")
    ids = Prompt.from_symbols(spec, ["tttt"]).input_ids
    fitting, misfit = (
        {"input_ids": ids, "sequence_ids": torch.tensor(values)}
        for values in ([[1, 1, 2, 0]], numbers)
    )
    check(spec, fitting, misfit, max_sequences=3)
