"""Packed sequences are numbered as each is alone."""

import functools
import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import families_of, spec_of, transformers_rope_index
from packings import packings
from support import assert_same, at_most, grid_tensor, rope_index

import vecrope
import vecrope.plans.from_groups
from tests.plans.sequence_cases import (
    QWEN,
    each_spec,
    ids,
    ids_of,
    planned_index,
)
from vecrope import (
    get_rope_index,
    plan_rope_index,
)
from vecrope.testing import Prompt

BY_HAND = {
    "text alone starts over": {
        "rows": ["tttttt"],
        "sequence_ids": [[1, 1, 2, 2, 2, 0]],
        "expected": [[[0, 1, 0, 1, 2, 0]]] * 3,
        "deltas": [[0], [0]],
    },
    "an image in each sequence, grids in order": {
        "rows": ["tIItIIIIt"],
        "sequence_ids": [[1, 1, 1, 1, 2, 2, 2, 2, 2]],
        "images": [(1, 2, 4), (1, 4, 4)],
        "expected": [
            [[0, 1, 1, 3, 0, 0, 0, 0, 2]],
            [[0, 1, 1, 3, 0, 0, 1, 1, 2]],
            [[0, 1, 2, 3, 0, 1, 0, 1, 2]],
        ],
        "deltas": [[0], [-2]],
    },
    "padding in front, in between and behind": {
        "rows": ["tIItttttt"],
        "sequence_ids": [[0, 1, 1, 0, 0, 2, 2, 2, 0]],
        "images": [(1, 2, 4)],
        "expected": [
            [[0, 0, 0, 0, 0, 0, 1, 2, 0]],
            [[0, 0, 0, 0, 0, 0, 1, 2, 0]],
            [[0, 0, 1, 0, 0, 0, 1, 2, 0]],
        ],
        "deltas": [[0], [0]],
    },
    "numbers start over in each row, and may leave some out": {
        "rows": ["ttt", "ttt", "ttt"],
        "sequence_ids": [[1, 1, 2], [1, 5, 5], [0, 0, 0]],
        "expected": [[[0, 1, 0], [0, 0, 1], [0, 0, 0]]] * 3,
        "deltas": [[0], [0], [0], [0]],
    },
    "a hole belongs to its sequence": {
        "rows": ["tttt"],
        "sequence_ids": [[1, 0, 1, 2]],
        "expected": [[[0, 0, 1, 0]]] * 3,
        "deltas": [[0], [0]],
    },
}


@pytest.mark.parametrize("case", BY_HAND.values(), ids=BY_HAND.keys())
def test_by_hand(case):
    position_ids, rope_deltas = get_rope_index(
        ids_of(QWEN, case["rows"]),
        QWEN,
        image_grid_thw=grid_tensor(case.get("images", [])),
        sequence_ids=ids(case["sequence_ids"]),
    )
    assert position_ids.tolist() == case["expected"]
    assert rope_deltas.tolist() == case["deltas"]


@pytest.mark.parametrize("convention", ["transformers", "sglang"])
def test_the_text_row_and_the_padding(convention):
    spec = spec_of("glm4v", convention)
    position_ids, _ = get_rope_index(
        ids_of(spec, ["tIItt"]),
        spec,
        image_grid_thw=ids([[1, 2, 4]]),
        sequence_ids=ids([[1, 1, 1, 2, 0]]),
        text_positions=True,
        pad_to_multiple_of=4,
    )
    p = spec.padding_value
    assert position_ids[:, 0].tolist() == [
        [0, 1, 2, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, p, p, p, p],
        [0, 1, 1, 0, p, p, p, p],
        [0, 1, 2, 0, p, p, p, p],
    ]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_the_text_row_of_rows_and_of_packed_input(packed):
    rows = ids_of(QWEN, ["tIIt", "tttt"])
    mask = ids([[1, 1, 1, 1], [0, 1, 1, 0]])
    given_as = {"attention_mask": mask}
    if packed:
        rows, given_as = (
            rows.view(-1),
            {"cu_seqlens": ids([0, 4, 8]), "attention_mask": mask.view(-1)},
        )
    position_ids, _ = get_rope_index(
        rows,
        QWEN,
        image_grid_thw=ids([[1, 2, 4]]),
        **given_as,
        text_positions=True,
        pad_to_multiple_of=3,
    )
    text = [[0, 1, 2, 3], [0, 0, 1, 0]]
    time = [[0, 1, 1, 3], [0, 0, 1, 0]]
    want = [[[*functools.reduce(operator.iadd, rows, []), 0] for rows in (text, time)]]
    if not packed:
        want = [[[*row, 0, 0] for row in rows] for rows in (text, time)]
    assert position_ids[:2].tolist() == (want[0] if packed else want)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_the_text_row_has_the_dtype_of_the_positions(dtype):
    arguments = ids_of(QWEN, ["tt"]).to(dtype), spec_of("glm4v", "transformers")
    position_ids, _ = get_rope_index(*arguments, text_positions=True)
    assert position_ids.dtype == dtype
    shard = plan_rope_index(*arguments).shard(0, 2, text_positions=True)
    assert shard.dtype == dtype


def assert_is_one_by_one(answer, packing, spec, answer_alone=None):
    position_ids, rope_deltas = answer
    padding = torch.ones_like(packing.input_ids, dtype=torch.bool)
    assert rope_deltas.shape == (len(packing.parts), 1)
    assert position_ids.shape == (4, *packing.input_ids.shape)
    for index, (part, (row, columns)) in enumerate(zip(packing.parts, packing.places, strict=True)):
        want = (answer_alone or rope_index)(part)
        got = position_ids[1:, row : row + 1, columns], rope_deltas[index : index + 1]
        assert_same(got, want)
        assert position_ids[0, row, columns].tolist() == list(range(part.input_ids.shape[1]))
        padding[row, columns] = False
    assert bool((position_ids[1:, padding] == spec.padding_value).all())
    assert bool((position_ids[0, padding] == 0).all())


@each_spec
@given(data=st.data())
@at_most(12)
def test_packed_equals_the_sequences_one_by_one(spec, data):
    packing = data.draw(packings(spec))
    arguments = packing.arguments()
    if data.draw(st.booleans()):
        arguments["mm_token_type_ids"] = packing.mm_token_type_ids
    answer = get_rope_index(packing.input_ids, spec, **arguments, text_positions=True)
    assert_is_one_by_one(answer, packing, spec)


@pytest.mark.parametrize("model_type", families_of("transformers"))
@given(data=st.data())
@at_most(8)
def test_packed_equals_transformers_one_by_one(model_type, data):
    spec = spec_of(model_type, "transformers")
    packing = data.draw(packings(spec, hostile=False))
    answer = get_rope_index(packing.input_ids, spec, **packing.arguments(), text_positions=True)
    assert_is_one_by_one(answer, packing, spec, transformers_rope_index)


@each_spec
@given(data=st.data())
@at_most(10)
def test_numbers_equal_bounds(spec, data):
    packing = data.draw(packings(spec))
    flat = packing.sequence_ids.flatten() > 0
    lengths = [part.input_ids.shape[1] for part in packing.parts]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    arguments = packing.arguments()
    rows = get_rope_index(packing.input_ids, spec, **arguments)
    del arguments["sequence_ids"]
    alone = get_rope_index(packing.input_ids.flatten()[flat], spec, cu_seqlens=bounds, **arguments)
    assert_same((rows[0].flatten(1)[:, flat], rows[1]), alone)


@each_spec
@given(data=st.data())
@at_most(10)
def test_the_static_form_equals_the_exact_one(spec, data):
    packing = data.draw(packings(spec))
    room = data.draw(st.integers(0, 2))
    want = get_rope_index(packing.input_ids, spec, **packing.arguments())
    position_ids, rope_deltas = planned_index(
        packing.input_ids,
        spec,
        **packing.arguments(),
        validate=data.draw(st.booleans()),
        max_sequences=len(packing.parts) + room,
        max_groups=packing.input_ids.numel() + 1,
    )
    number = len(packing.parts)
    assert_same((position_ids, rope_deltas[:number]), want)
    assert rope_deltas[number:].tolist() == [[0]] * room


@given(packing=packings(QWEN))
@at_most(12)
def test_a_plan_has_the_sequences_for_rows(packing):
    plan = plan_rope_index(packing.input_ids, QWEN, **packing.arguments())
    want = get_rope_index(packing.input_ids, QWEN, **packing.arguments())
    assert_same((plan.position_ids(), plan.rope_deltas), want)
    assert plan.num_rows == len(packing.parts)
    for row, part in enumerate(packing.parts):
        own = plan_rope_index(
            part.input_ids,
            QWEN,
            image_grid_thw=part.image_grid_thw,
            video_grid_thw=part.video_grid_thw,
        )
        assert torch.equal(plan.decode(2)[:, row : row + 1], own.decode(2))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_logits_are_those_of_the_sequences_alone(implementation, tiny_model):
    model = tiny_model(implementation).double().eval()
    spec = vecrope.MRopeSpec.from_config(model.config, convention="transformers")
    rows = ["tt<IIIIII>ttt", "t<II>tt", "<VVVV>t"]
    images, videos = [[1, 4, 6], [1, 2, 4]], [[2, 4, 2]]
    generator = torch.Generator().manual_seed(0)

    def pixels(grids):
        patches = sum(t * h * w for t, h, w in grids)
        size = model.config.vision_config.patch_size
        return torch.randn((patches, 6 * size * size), generator=generator, dtype=torch.float64)

    image_pixels, video_pixels = pixels(images), pixels(videos)
    line = ids_of(spec, ["".join(rows) + "tt"])
    numbers = [number for number, row in enumerate(rows, start=1) for _ in row] + [0, 0]
    position_ids, rope_deltas = get_rope_index(
        line,
        spec,
        image_grid_thw=ids(images),
        video_grid_thw=ids(videos),
        sequence_ids=ids([numbers]),
        text_positions=True,
    )
    with torch.no_grad():
        packed = model(
            input_ids=line,
            position_ids=position_ids,
            pixel_values=image_pixels,
            pixel_values_videos=video_pixels,
            image_grid_thw=ids(images),
            video_grid_thw=ids(videos),
            use_cache=False,
        ).logits[0]
        for index, row in enumerate(rows):
            prompt = Prompt.from_symbols(spec, [row])
            grids = {"image_grid_thw": ids(images[index : index + 1])} if index < 2 else {}
            visual = {}
            if index < 2:
                start = 24 * index
                visual["pixel_values"] = image_pixels[
                    start : start + grids["image_grid_thw"].prod()
                ]
            else:
                grids = {"video_grid_thw": ids(videos)}
                visual["pixel_values_videos"] = video_pixels
            alone = model(
                input_ids=prompt.input_ids,
                mm_token_type_ids=prompt.mm_token_type_ids,
                use_cache=False,
                **grids,
                **visual,
            ).logits[0]
            start = sum(map(len, rows[:index]))
            torch.testing.assert_close(
                packed[start : start + len(row)], alone, rtol=1e-5, atol=1e-6
            )
            assert torch.equal(model.model.rope_deltas, rope_deltas[index : index + 1])
