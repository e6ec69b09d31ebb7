import pytest
import torch
from hypothesis import given
from own_support import (
    ids_of,
)
from support import assert_same, kept
from torch._subclasses import FakeTensorMode

from tests.own_rules.glm_image.calls import TRANSFORMERS, decode, decode_of, each_convention
from vecrope import (
    get_decode_position_ids,
)
from vecrope.testing import conversations

# Static shapes


@each_convention
def test_a_capacity_continues_the_rows(spec):
    @given(conversations(spec))
    def check(prompt):
        positions, lengths = decode(prompt)
        longest = positions.shape[2]
        for validate in (True, False):
            got = decode(prompt, max_decode_tokens=longest + 2, validate=validate)
            last = got[0][:, :, longest - 1 : longest] if longest else got[0][:, :, :1]
            wide = torch.cat((positions, last.expand(-1, -1, 2)), dim=2)
            assert_same(got, (wide, lengths))

    check()


@each_convention
def test_packed_prompts_are_answered_as_padded_ones(spec):
    @given(conversations(spec, holes=False))
    def check(prompt):
        arguments = prompt.arguments()
        ids, mask = arguments.pop("input_ids"), kept(prompt)
        del arguments["attention_mask"]
        bounds = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
        packed = get_decode_position_ids(ids[mask], spec, cu_seqlens=bounds, **arguments)
        assert_same(packed, decode(prompt))

    check()


def test_a_capacity_that_is_too_small_gives_no_answer_where_it_cannot_be_refused():
    positions, lengths = decode_of(
        ["t"], image_grid_thw=[[1, 1, 2]], max_decode_tokens=2, validate=False
    )
    assert (positions.tolist(), lengths.tolist()) == ([[[-1, -1]] * 3], [-1])


def test_compiled_decode_positions_equal_eager_ones_and_a_misfit_gives_no_answer():
    compiled = torch.compile(get_decode_position_ids, backend="eager", fullgraph=True, dynamic=True)
    rows = {"fits": ["t<I>t", "ttt<t"], "does not": ["t<II>", "tttt<"]}
    grids = torch.tensor([[1, 1, 1], [1, 2, 2], [1, 3, 1]])
    arguments = {
        "image_grid_thw": grids,
        "images_per_sample": torch.tensor([2, 1]),
        "max_decode_tokens": 7,
    }
    ids = ids_of(*rows["fits"])
    assert_same(
        compiled(ids, TRANSFORMERS, **arguments),
        get_decode_position_ids(ids, TRANSFORMERS, **arguments),
    )
    positions, lengths = compiled(ids_of(*rows["does not"]), TRANSFORMERS, **arguments)
    assert torch.equal(positions, torch.full_like(positions, -1))
    assert lengths.tolist() == [-1, -1]


def test_where_values_cannot_be_read_a_capacity_is_needed_and_suffices():
    with FakeTensorMode():
        for device in ("cpu", "meta"):
            ids = torch.empty((2, 5), dtype=torch.int64, device=device)
            arguments = {
                "attention_mask": torch.empty_like(ids),
                "image_grid_thw": torch.empty((3, 3), dtype=torch.int64, device=device),
                "images_per_sample": torch.empty(2, dtype=torch.int64, device=device),
                "validate": False,
            }
            positions, lengths = get_decode_position_ids(
                ids, TRANSFORMERS, max_decode_tokens=6, **arguments
            )
            assert (positions.shape, lengths.shape) == ((2, 3, 6), (2,))
        with pytest.raises(ValueError, match="max_decode_tokens must be given where values cannot"):
            get_decode_position_ids(ids, TRANSFORMERS, **arguments)


def test_grids_on_another_device_are_moved_to_the_ids():
    with FakeTensorMode():
        ids = torch.empty((2, 5), dtype=torch.int64, device="meta")
        answers = get_decode_position_ids(
            ids,
            TRANSFORMERS,
            attention_mask=torch.empty((2, 5), dtype=torch.int64),
            image_grid_thw=torch.empty((3, 3), dtype=torch.int64),
            images_per_sample=torch.empty(2, dtype=torch.int64),
            validate=False,
            max_decode_tokens=6,
        )
        assert {tensor.device.type for tensor in answers} == {"meta"}
