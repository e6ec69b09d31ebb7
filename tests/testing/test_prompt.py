"""`Prompt`: symbols, ids, types, and a repr that builds it again."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from oracles import each_rule

from tests.testing.searching import QWEN3, SGLANG
from vecrope import MRopeSpec
from vecrope.families.rules import OwnRule
from vecrope.testing import Prompt, token_soup


@each_rule
def test_a_prompts_repr_builds_it_again(spec):
    @given(token_soup(spec, fit=False))
    def check(prompt):
        names = {"Prompt": Prompt, "MRopeSpec": MRopeSpec, "torch": torch}
        again = eval(repr(prompt), names)
        assert again.spec == prompt.spec
        assert repr(again) == repr(prompt)
        for name, value in prompt.arguments().items():
            other = again.arguments()[name]
            assert type(value) is type(other)
            if torch.is_tensor(value):
                assert value.dtype == other.dtype
                assert value.allclose(other, 0, 0, equal_nan=True)
            else:
                assert repr(value) == repr(other)

    check()


def test_a_prompts_repr_shows_what_differs_from_the_preset():
    prompt = Prompt.from_symbols(replace(SGLANG, spatial_merge_size=3), ["tt"])
    preset = "MRopeSpec.for_model('glm4v', convention='sglang', spatial_merge_size=3)"
    assert repr(prompt) == f"Prompt.from_symbols({preset}, ['tt'])"


def test_a_prompts_repr_shows_an_unknown_spec_in_full():
    spec = replace(SGLANG, model_type="unheard_of")
    prompt = Prompt.from_symbols(spec, ["tt"], mask=["01"])
    assert repr(prompt) == f"Prompt.from_symbols({spec!r}, ['tt'], mask=['01'])"


def test_text_ids_keep_clear_of_the_specs():
    ids = {"image_token_id": 0, "video_start_token_id": 1, "video_end_token_id": 3}
    spec = replace(SGLANG, **ids)
    prompt = Prompt.from_symbols(spec, ["t<>I[]"])
    assert prompt.input_ids.tolist() == [[2, 4, 5, 0, 1, 3]]
    assert prompt.symbols == ["t<>I[]"]


def test_ids_of_every_kind_have_their_symbols():
    prompt = Prompt.from_symbols(QWEN3["sglang"], ["t<>IV[]"])
    assert prompt.input_ids.tolist() == [[0, 151652, 1, 151655, 151656, 2, 3]]
    assert prompt.symbols == ["t<>IV[]"]


def test_a_prompt_without_videos_of_its_own_has_no_symbol_of_them():
    with pytest.raises(ValueError, match="got 'V' in row 0 at 0"):
        Prompt.from_symbols(SGLANG, ["V"])


def test_types_are_read_off_masked_tokens_too_where_the_mask_is_ignored():
    prompt = Prompt.from_symbols(QWEN3["sglang"], ["<I<V"], mask=["1011"])
    assert prompt.mm_token_type_ids.tolist() == [[0, 1, 0, 2]]


def test_a_family_with_a_rule_of_its_own_has_another_reference():
    spec = replace(SGLANG, own_rule=OwnRule())
    with pytest.raises(ValueError, match="'glm4v' is numbered by a rule of its own under conv"):
        Prompt.from_symbols(spec, ["t"]).expected()


def test_positions_are_of_the_dtype_of_the_spec():
    for spec, dtype in ((SGLANG, torch.int32), (QWEN3["vllm"], torch.int64)):
        prompt = Prompt.from_symbols(spec, ["t"])
        narrow = replace(prompt, input_ids=prompt.input_ids.int())
        assert narrow.expected()[0].dtype == dtype


def test_foreign_ids_are_shown_as_text():
    prompt = Prompt.from_symbols(SGLANG, ["tt"])
    prompt.input_ids[0, 1] = 77
    assert prompt.symbols == ["tt"]


def test_types_are_read_off_unmasked_tokens():
    prompt = Prompt.from_symbols(SGLANG, ["[I]I", "[I]I"], mask=["1111", "0111"])
    assert prompt.mm_token_type_ids.tolist() == [[0, 2, 0, 1], [0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["tX"], SGLANG), TypeError, "spec must be an MRopeSpec"),
        ((SGLANG, ["tX"]), ValueError, r"rows must be made of .*, got 'X' in row 0 at 1"),
        ((SGLANG, "tI"), ValueError, "rows must be a list of strings, one a row, got 'tI'"),
        ((SGLANG, ["tI", "t"]), ValueError, "got 't' as row 1 and 'tI' as row 0"),
        ((SGLANG, ["tI", 3]), ValueError, "rows must be strings, got 3 as row 1"),
    ],
)
def test_symbols_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Prompt.from_symbols(*arguments)


def test_masks_refused():
    with pytest.raises(
        ValueError, match="mask must be made of the characters '0123456789', got 'x'"
    ):
        Prompt.from_symbols(SGLANG, ["tI"], mask=["1x"])


@pytest.mark.parametrize("grids", ["x", [[1, 2]], [[1, 2, None]]])
def test_grids_that_are_none_are_named(grids):
    spec = MRopeSpec.for_model("glm4v", convention="sglang")
    with pytest.raises(ValueError, match="image_grid_thw must be a list of numbers, or of rows"):
        Prompt.from_symbols(spec, ["tI"], image_grid_thw=grids)
