import random
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import assert_same, fitting, grid_list, grid_tensor, kept, rope_index, spec_of

from tests.rope_index.forms import (
    FORMS,
    UNSEEN,
    each_convention,
    each_form,
    parametrize,
    special_ids,
    static_rope_index,
)
from vecrope import get_rope_index
from vecrope.testing import Prompt


@each_convention
def test_masked_tokens_may_stand_anywhere_and_be_anything(spec):
    ids = [*special_ids(spec), 11]

    @given(fitting(spec), st.integers(1, 9), st.booleans(), st.integers(0, 2**32))
    def check(prompt, added, as_types, seed):
        rng = random.Random(seed)
        batch, seq_len = prompt.input_ids.shape
        longer = seq_len + added
        places = torch.tensor(
            [sorted(rng.sample(range(longer), seq_len)) for _ in range(batch)]
        ).view(batch, seq_len)
        junk = torch.tensor([[rng.choice(ids) for _ in range(longer)] for _ in range(batch)])
        position_ids, rope_deltas = rope_index(
            prompt,
            input_ids=junk.scatter(1, places, prompt.input_ids),
            attention_mask=torch.zeros_like(junk).scatter(1, places, kept(prompt).long()),
            mm_token_type_ids=(junk % 3).scatter(1, places, prompt.mm_token_type_ids)
            if as_types
            else None,
        )
        expected, expected_deltas = rope_index(prompt)
        filled = torch.full_like(position_ids, spec.padding_value)
        assert_same(
            (position_ids, rope_deltas),
            (
                filled.scatter(2, places.expand(3, -1, -1), expected),
                expected_deltas - (added if spec.delta_length == "padded" else 0),
            ),
        )

    check()


@each_convention
@parametrize("form", {"eager": {}, "static": {"form": "static"}})
def test_packed_sequences_are_answered_one_by_one(spec, form):
    @given(fitting(spec), st.sampled_from([torch.int32, torch.int64]), st.booleans())
    def check(prompt, dtype, as_types):
        keep = kept(prompt)
        lengths = keep.sum(1)
        position_ids, rope_deltas = rope_index(
            prompt,
            input_ids=prompt.input_ids[keep],
            mm_token_type_ids=prompt.mm_token_type_ids[keep] if as_types else None,
            attention_mask=None,
            cu_seqlens=torch.tensor([0, *accumulate(lengths.tolist())], dtype=dtype),
            **form,
        )
        expected, expected_deltas = rope_index(prompt)
        if spec.delta_length == "padded":
            expected_deltas += (prompt.input_ids.shape[1] - lengths)[:, None]
        assert_same((position_ids, rope_deltas), (expected[:, keep], expected_deltas))

    check()


@each_convention
@parametrize("form", {"eager": get_rope_index, "static": static_rope_index})
def test_packed_sequences_may_be_masked(spec, form):
    @given(fitting(spec))
    def check(prompt):
        batch, seq_len = prompt.input_ids.shape
        position_ids, rope_deltas = rope_index(
            prompt,
            form,
            input_ids=prompt.input_ids.flatten(),
            attention_mask=kept(prompt).flatten(),
            cu_seqlens=torch.arange(batch + 1) * seq_len,
        )
        expected, expected_deltas = rope_index(prompt)
        assert_same((position_ids, rope_deltas), (expected.flatten(1), expected_deltas))

    check()


@each_convention
@each_form
@pytest.mark.parametrize(
    ("row", "cu_seqlens", "positions", "deltas"),
    [
        pytest.param("ttIt", [0, 0, 2, 2, 4, 4, 4], [0, 1, 0, 1], [0] * 6, id="empty among others"),
        pytest.param("ttIt", [0, 4], [0, 1, 2, 3], [0], id="one sequence"),
        pytest.param("[tIt", [0, 1, 4], [0, 0, 1, 2], [0, 0], id="a marker in another sequence"),
        pytest.param("", [0, 0, 0], [], [0, 0], id="nothing but empty ones"),
    ],
)
def test_packed_by_hand(form, spec, row, cu_seqlens, positions, deltas):
    prompt = Prompt.from_symbols(spec, [row], image_grid_thw=[[1, 2, 2]] if "I" in row else None)
    answer = rope_index(
        prompt, form, input_ids=prompt.input_ids[0], cu_seqlens=torch.tensor(cu_seqlens)
    )
    expected = torch.tensor(positions, dtype=torch.int64).expand(3, -1)
    assert_same(answer, (expected, torch.tensor(deltas)[:, None]))


@each_convention
def test_zero_grids_anywhere_change_nothing(spec):
    @given(fitting(spec), st.data())
    def check(prompt, data):
        padded = {}
        for name in ("image_grid_thw", "video_grid_thw"):
            grids = grid_list(getattr(prompt, name))
            for _ in range(data.draw(st.integers(0, 3))):
                grids.insert(data.draw(st.integers(0, len(grids))), [0, 0, 0])
            padded[name] = grid_tensor(grids)
        for form in FORMS.values():
            assert_same(rope_index(prompt, form, **padded), prompt.expected())

    check()


@each_convention
@pytest.mark.parametrize(
    "grids", [None, grid_tensor([]), grid_tensor([[0, 0, 0]] * 2)], ids=["none", "empty", "zeros"]
)
def test_text_needs_no_grid(spec, grids):
    prompt = Prompt.from_symbols(spec, ["tt<>[]", "tttttt"])
    expected = torch.arange(6).expand(3, 2, 6), torch.zeros((2, 1), dtype=torch.int64)
    for form in FORMS.values():
        answer = rope_index(prompt, form, image_grid_thw=grids, video_grid_thw=grids)
        assert_same(answer, expected)


@each_convention
def test_touching_images_are_answered_as_if_text_stood_between_them(spec):
    side = st.integers(1, 4).map(lambda tokens: tokens * spec.spatial_merge_size)
    grid = st.tuples(st.just(1), side, side)

    @given(st.lists(grid, min_size=1, max_size=5), st.sampled_from(["I", "video"]))
    def check(grids, kind):
        blocks = ["I" * (h * w // spec.spatial_merge_size**2) for _, h, w in grids]
        name = "video_grid_thw" if kind == "video" else "image_grid_thw"
        start = "[" if kind == "video" else "t"
        touching = Prompt.from_symbols(spec, [start + "".join(blocks) + "t"], **{name: grids})
        apart = Prompt.from_symbols(spec, [start + "t".join(blocks) + "t"], **{name: grids})
        separators = torch.tensor(list(accumulate(len(block) + 1 for block in blocks[:-1])))
        keep = torch.ones_like(apart.input_ids[0], dtype=torch.bool)
        keep[separators.long()] = False
        passed = (~keep).cumsum(0)[keep]

        position_ids, rope_deltas = rope_index(touching)
        apart_ids, apart_deltas = rope_index(apart)
        assert_same((position_ids, rope_deltas), (apart_ids[..., keep] - passed, apart_deltas))

    check()


@each_convention
def test_int32_equals_int64(spec):
    @given(fitting(spec))
    def check(prompt):
        expected, expected_deltas = prompt.expected()
        for form in FORMS.values():
            answer = rope_index(prompt, form, input_ids=prompt.input_ids.int())
            assert_same(answer, (expected.int(), expected_deltas))

    check()


def a_prompt(spec):
    return Prompt.from_symbols(
        spec,
        ["t<IIIIII>tt", "[<II>t<II>]", "tIItttttttt"[:11]],
        mask=["1" * 11, "1" * 11, "00011111110"],
        image_grid_thw=[[1, 4, 6]],
        video_grid_thw=[[2, 2, 4]],
    )


@each_convention
@each_form
@pytest.mark.parametrize(
    ("mask", "types", "grids"),
    [
        (torch.bool, torch.uint8, torch.int32),
        (torch.int8, torch.int8, torch.int16),
        (torch.uint8, torch.int32, torch.uint8),
        (torch.int32, torch.int64, torch.int64),
    ],
    ids=str,
)
def test_masks_types_and_grids_of_any_integer_dtype(spec, form, mask, types, grids):
    prompt = a_prompt(spec)
    arguments = {
        "attention_mask": prompt.attention_mask.to(mask),
        "image_grid_thw": prompt.image_grid_thw.to(grids),
        "video_grid_thw": prompt.video_grid_thw.to(grids),
    }
    by_type = {**arguments, "mm_token_type_ids": prompt.mm_token_type_ids.to(types)}
    assert_same(rope_index(prompt, form, **arguments), prompt.expected())
    assert_same(rope_index(prompt, form, **by_type), prompt.expected())


@each_convention
@each_form
@parametrize("as_types", {"ids": False, "types": True})
def test_strided_inputs_are_read_and_left_as_they_are(spec, form, as_types):
    prompt = a_prompt(spec)
    arguments = prompt.arguments() | ({} if as_types else {"mm_token_type_ids": None})
    strided = {
        name: value.repeat_interleave(2, 1)[:, ::2]
        if "grid" in name
        else value.t().contiguous().t()
        for name, value in arguments.items()
        if value is not None
    }
    assert not any(value.is_contiguous() for value in strided.values())
    copies = {name: value.clone() for name, value in strided.items()}

    position_ids, rope_deltas = form(spec=spec, **strided)
    assert_same((position_ids, rope_deltas), prompt.expected())
    assert_same(strided.values(), copies.values())

    storages = {value.untyped_storage().data_ptr() for value in strided.values()}
    assert position_ids.untyped_storage().data_ptr() not in storages
    assert rope_deltas.untyped_storage().data_ptr() not in storages


@each_convention
@each_form
@parametrize(
    "rows", {"text": ["ttt", "ttt"], "an image": ["tIt", "ttt"], "touching images": ["III", "tII"]}
)
def test_every_position_has_memory_of_its_own(spec, form, rows):
    grids = [[1, 2, 2]] * "".join(rows).count("I")
    prompt = Prompt.from_symbols(spec, rows, image_grid_thw=grids)
    position_ids, rope_deltas = rope_index(prompt, form)
    assert position_ids.is_contiguous()
    expected = position_ids.clone()
    expected[0, 0, 1] = 99
    position_ids[0, 0, 1] = 99
    rope_deltas[0] = 99
    assert torch.equal(position_ids, expected)
    assert rope_deltas.tolist() == [[99], [0]]


@each_convention
@each_form
def test_an_expanded_mask_and_expanded_ids(spec, form):
    prompt = Prompt.from_symbols(
        spec, ["tIIt"] * 3, mask=["1110"] * 3, image_grid_thw=[[1, 2, 4]] * 3
    )
    answer = rope_index(
        prompt,
        form,
        input_ids=prompt.input_ids[:1].expand(3, -1),
        attention_mask=prompt.attention_mask[:1].expand(3, -1),
        image_grid_thw=prompt.image_grid_thw[:1].expand(3, -1),
    )
    assert_same(answer, prompt.expected())


@each_form
@pytest.mark.parametrize("default", [torch.float16, torch.float64], ids=str)
def test_nothing_depends_on_the_default_dtype_nor_on_gradients(form, default):
    spec = spec_of("glm4v", "sglang")
    # float16 counts to 2,048.
    long = Prompt.from_symbols(spec, ["t" * 3000 + "It"], image_grid_thw=[[1, 2, 2]])
    for prompt in (a_prompt(spec), long):
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            answer = rope_index(prompt, form)
        finally:
            torch.set_default_dtype(before)
        assert_same(answer, prompt.expected())
        assert not any(tensor.requires_grad for tensor in answer)
        with torch.inference_mode():
            assert_same(rope_index(prompt, form), prompt.expected())


@each_form
@each_convention
@parametrize(
    "rows",
    {"text": ["ttt"], "one row": ["tIt[It]"], "two rows": ["tIt[It]", "]ttttIt"], "all": None},
)
def test_nothing_depends_on_the_default_device(spec, form, rows):
    # What is kept of a spec is made at its first use.
    spec = replace(spec, image_token_id=spec.image_token_id + next(UNSEEN))
    prompt = a_prompt(spec)
    if rows:
        grids = [[1, 2, 2]] * "".join(rows).count("tI")
        videos = [[1, 2, 2]] * "".join(rows).count("[I")
        prompt = Prompt.from_symbols(spec, rows, image_grid_thw=grids, video_grid_thw=videos)
    with torch.device("meta"):
        answer = rope_index(prompt, form)
    assert {tensor.device.type for tensor in answer} == {"cpu"}
    assert_same(answer, prompt.expected())
