import functools
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import families_of, spec_of, transformers_rope_index
from packings import packings
from support import LEAST, assert_no_answer, assert_same, grid_tensor, rope_index
from torch._subclasses import FakeTensorMode
from transformers.masking_utils import find_packed_sequence_indices

import vecrope
from vecrope import get_rope_index, plan_rope_index, sequence_ids_from_position_ids
from vecrope.testing import Prompt

QWEN = spec_of("qwen2_vl", "transformers")
SPECS = {
    "glm4v-transformers": spec_of("glm4v", "transformers"),
    "glm4v-sglang": spec_of("glm4v", "sglang"),
    "qwen2_vl-transformers": QWEN,
    "qwen2_5_vl-transformers": spec_of("qwen2_5_vl", "transformers"),
    "qwen3_vl-vllm": spec_of("qwen3_vl", "vllm"),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
ids = torch.tensor


def ids_of(spec, rows):
    return Prompt.from_symbols(spec, rows).input_ids


# By hand


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


# Packed equals the sequences one by one


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
@settings(max_examples=12)
def test_packed_equals_the_sequences_one_by_one(spec, data):
    packing = data.draw(packings(spec))
    arguments = packing.arguments()
    if data.draw(st.booleans()):
        arguments["mm_token_type_ids"] = packing.mm_token_type_ids
    answer = get_rope_index(packing.input_ids, spec, **arguments, text_positions=True)
    assert_is_one_by_one(answer, packing, spec)


@pytest.mark.parametrize("model_type", families_of("transformers"))
@given(data=st.data())
@settings(max_examples=8)
def test_packed_equals_transformers_one_by_one(model_type, data):
    spec = spec_of(model_type, "transformers")
    packing = data.draw(packings(spec, hostile=False))
    answer = get_rope_index(packing.input_ids, spec, **packing.arguments(), text_positions=True)
    assert_is_one_by_one(answer, packing, spec, transformers_rope_index)


@each_spec
@given(data=st.data())
@settings(max_examples=10)
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
@settings(max_examples=10)
def test_the_static_form_equals_the_exact_one(spec, data):
    packing = data.draw(packings(spec))
    room = data.draw(st.integers(0, 2))
    want = get_rope_index(packing.input_ids, spec, **packing.arguments())
    position_ids, rope_deltas = get_rope_index(
        packing.input_ids,
        spec,
        **packing.arguments(),
        validate=data.draw(st.booleans()),
        max_sequences=len(packing.parts) + room,
        form="static",
    )
    number = len(packing.parts)
    assert_same((position_ids, rope_deltas[:number]), want)
    assert rope_deltas[number:].tolist() == [[0]] * room


@given(packing=packings(QWEN))
@settings(max_examples=12)
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


# How others tell sequences apart


@each_spec
@given(data=st.data())
@settings(max_examples=10)
def test_transformers_finds_the_sequences_in_the_text_row(spec, data):
    packing = data.draw(packings(spec))
    position_ids, _ = get_rope_index(
        packing.input_ids, spec, **packing.arguments(), text_positions=True
    )
    found = find_packed_sequence_indices(position_ids[0])
    valid = packing.sequence_ids > 0
    same = packing.sequence_ids[:, :, None] == packing.sequence_ids[:, None, :]
    both = valid[:, :, None] & valid[:, None, :]
    if found is None:
        assert bool(same[both].all())
    else:
        assert torch.equal((found[:, :, None] == found[:, None, :])[both], same[both])
        # Padding is of no sequence that holds tokens.
        mixed = valid[:, :, None] & ~valid[:, None, :]
        assert not bool((found[:, :, None] == found[:, None, :])[mixed].any())


@each_spec
@given(data=st.data())
@settings(max_examples=10)
def test_the_numbers_are_found_in_the_text_row(spec, data):
    packing = data.draw(packings(spec))
    position_ids, _ = get_rope_index(
        packing.input_ids, spec, **packing.arguments(), text_positions=True
    )
    valid = packing.sequence_ids > 0
    got = sequence_ids_from_position_ids(position_ids, valid.long())
    assert torch.equal(got, sequence_ids_from_position_ids(position_ids[0], valid))
    before = torch.nn.functional.pad(packing.sequence_ids.cummax(1).values[:, :-1], (1, 0))
    want = (packing.sequence_ids > before).cumsum(1) * valid
    assert torch.equal(got, want)


@given(st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=3))
def test_the_numbers_are_those_of_transformers(rows):
    positions = torch.tensor(rows)
    found = find_packed_sequence_indices(positions)
    want = torch.zeros_like(positions) if found is None else found
    assert torch.equal(sequence_ids_from_position_ids(positions), want + 1)


RESETS = {
    "one sequence": ([[0, 1, 2]], None, [[1, 1, 1]]),
    "one that goes on from before": ([[5, 6, 0]], None, [[1, 1, 2]]),
    "sequences of one token": ([[0, 0, 0]], None, [[1, 2, 3]]),
    "padding on both sides": ([[0, 0, 1, 0, 0]], [[0, 1, 1, 1, 0]], [[0, 1, 1, 2, 0]]),
    "a hole": ([[0, 0, 1]], [[1, 0, 1]], [[1, 0, 1]]),
    "nothing but padding": ([[0, 0]], [[0, 0]], [[0, 0]]),
    "no token": ([[]], [[]], [[]]),
}


@pytest.mark.parametrize(("positions", "mask", "want"), RESETS.values(), ids=RESETS.keys())
def test_resets_by_hand(positions, mask, want):
    mask = None if mask is None else torch.tensor(mask, dtype=torch.bool)
    got = sequence_ids_from_position_ids(torch.tensor(positions, dtype=torch.int64), mask)
    assert got.tolist() == want
    assert got.dtype == torch.int64


# Refused


ROW = {"input_ids": ids([[7, 8, 9, 7]]), "sequence_ids": ids([[1, 1, 2, 0]])}
SGLANG_QWEN = spec_of("qwen2_vl", "sglang")
REFUSED = {
    "numbers that go back": (
        {"sequence_ids": ids([[1, 1, 2, 2], [1, 2, 0, 1]]), "input_ids": ids([[7] * 4] * 2)},
        ValueError,
        "sequence_ids must not go back in a row, got 1 after 2 in row 1, token 3",
    ),
    "a negative number": (
        {"sequence_ids": ids([[1, -1, 2, 0]])},
        ValueError,
        "sequence_ids must not be negative, got -1 in row 0, token 1",
    ),
    "nothing but padding": (
        {"sequence_ids": ids([[0, 0, 0, 0]])},
        ValueError,
        "sequence_ids must hold a sequence, got 0 at every token",
    ),
    "no token": (
        {"input_ids": ids([[7]])[:, :0], "sequence_ids": ids([[1]])[:, :0]},
        ValueError,
        r"sequence_ids must hold a sequence, got no token in shape \(1, 0\)",
    ),
    "a mask, too": (
        {"attention_mask": ids([[1, 1, 1, 0]])},
        ValueError,
        "attention_mask must be None with sequence_ids",
    ),
    "bounds, too": (
        {"input_ids": ids([7, 8]), "sequence_ids": ids([1, 1]), "cu_seqlens": ids([0, 2])},
        ValueError,
        "cu_seqlens must be None with sequence_ids",
    ),
    "a bool": (
        {"sequence_ids": ids([[True, True, True, False]])},
        TypeError,
        "sequence_ids must be of a signed integer dtype or uint8, got torch.bool",
    ),
    "a list": (
        {"sequence_ids": [[1, 1, 2, 0]]},
        TypeError,
        "sequence_ids must be a tensor, got list",
    ),
    "another shape": (
        {"sequence_ids": ids([[1, 1, 2]])},
        ValueError,
        r"sequence_ids must have the shape of input_ids \(1, 4\), got \(1, 3\)",
    ),
    "a family that numbers padding": (
        {"spec": SGLANG_QWEN},
        ValueError,
        "qwen2_vl under convention 'sglang' leaves no token out; pack its sequences without",
    ),
    "too small a capacity": (
        {"max_sequences": 1},
        ValueError,
        "max_sequences must be at least 2 for this input, got 1",
    ),
    "a capacity of none": (
        {"max_sequences": 0},
        ValueError,
        "max_sequences must be at least 1, got 0",
    ),
    "a capacity that is no number": (
        {"max_sequences": True},
        TypeError,
        "max_sequences must be an int, got True",
    ),
    "a capacity without numbers": (
        {"sequence_ids": None, "max_sequences": 2},
        ValueError,
        "max_sequences must be None without sequence_ids, got 2",
    ),
    "no capacity where values cannot be read": (
        {
            "input_ids": torch.empty((1, 4), dtype=torch.int64, device="meta"),
            "sequence_ids": torch.empty((1, 4), dtype=torch.int64, device="meta"),
            "validate": False,
        },
        ValueError,
        "max_sequences must be given with sequence_ids where shapes must not depend on values",
    ),
    "a prompt that does not fit its grids": (
        {
            "input_ids": ids([[7, QWEN.image_token_id, 8, 7]]),
            "image_grid_thw": ids([[1, 4, 4]]),
        },
        ValueError,
        "was the prompt truncated inside the image?",
    ),
}


@pytest.mark.parametrize("function", [get_rope_index, plan_rope_index])
@pytest.mark.parametrize(("changes", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(changes, error, message, function):
    arguments = {**ROW, "spec": QWEN, **changes}
    with pytest.raises(error, match=message):
        function(**arguments)


@pytest.mark.parametrize(
    ("positions", "mask", "error", "message"),
    [
        (ids([0, 1]), None, ValueError, r"position_ids must have shape \(B, T\), .* got \(2,\)"),
        (ids([[[0]]] * 3), None, ValueError, r"got \(3, 1, 1\)"),
        (ids([[0.0]]), None, TypeError, "position_ids must be of a signed integer dtype"),
        (ids([[0]]), ids([[1.0]]), TypeError, "attention_mask must hold integers or bools"),
        (ids([[0]]), ids([1]), ValueError, r"attention_mask must have shape \(1, 1\), got \(1,\)"),
        (ids([[0]]), [[1]], TypeError, "attention_mask must be a tensor, got list"),
    ],
    ids=["a row alone", "three axes", "floats", "a mask of floats", "another mask", "a list"],
)
def test_resets_refused(positions, mask, error, message):
    with pytest.raises(error, match=message):
        sequence_ids_from_position_ids(positions, mask)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 3, 2, 4], "cu_seqlens must not decrease, got 3 then 2"),
        ([0, 3], "cu_seqlens must run from 0 to the number of tokens 4, got 0 to 3"),
        ([1, 4], "cu_seqlens must run from 0 to the number of tokens 4, got 1 to 4"),
    ],
)
def test_bounds_refused(bounds, message):
    with pytest.raises(ValueError, match=message):
        get_rope_index(ids([7, 8, 9, 7]), QWEN, cu_seqlens=ids(bounds))


@pytest.mark.parametrize("multiple", [0, -2])
def test_a_multiple_that_is_none_is_refused(multiple):
    with pytest.raises(ValueError, match=f"pad_to_multiple_of must be at least 1, got {multiple}"):
        get_rope_index(ids([[7, 8]]), QWEN, pad_to_multiple_of=multiple)


# Without reading values


STATIC = {"max_sequences": 3, "form": "static", "validate": False}


def test_unchecked_too_small_a_capacity_gives_no_answer():
    arguments = {**ROW, **STATIC, "max_sequences": 1}
    assert_no_answer(get_rope_index(arguments.pop("input_ids"), QWEN, **arguments))


def test_too_few_segments_give_no_answer_where_deltas_are_of_padded_rows():
    spec = spec_of("glm4v", "sglang")
    arguments = {**ROW, "max_sequences": 3, "max_segments": 1, "validate": False}
    plan = plan_rope_index(arguments.pop("input_ids"), spec, **arguments)
    answer = plan.position_ids(), plan.rope_deltas
    assert_no_answer(answer)
    assert answer[1].tolist() == [[LEAST]] * 3


def test_unchecked_without_a_sequence_all_is_padding():
    rows = ids([[7, 8]])
    for capacity in ({}, {"max_sequences": 1}):
        answer = get_rope_index(
            rows, QWEN, sequence_ids=torch.zeros_like(rows), validate=False, **capacity
        )
        assert_same(answer, (torch.zeros((3, 1, 2), dtype=torch.int64), ids([[0]])))


@pytest.mark.parametrize("spec", [QWEN, SPECS["glm4v-sglang"]], ids=["valid", "padded"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_operation_depends_on_values(spec, device):
    with FakeTensorMode():
        rows = torch.empty((2, 6), dtype=torch.int64, device=device)
        plan = plan_rope_index(
            rows,
            spec,
            sequence_ids=rows,
            image_grid_thw=torch.empty((2, 3), dtype=torch.int64, device=device),
            **STATIC,
        )
        assert plan.position_ids(text_positions=True, pad_to_multiple_of=4).shape == (4, 2, 8)
        assert plan.shard(1, 2, text_positions=True).shape == (4, 2, 3)
        assert plan.rope_deltas.shape == (3, 1)
        assert sequence_ids_from_position_ids(rows, rows).shape == (2, 6)


@pytest.fixture(scope="module")
def compiled():
    torch._dynamo.reset()
    return torch.compile(get_rope_index, fullgraph=True, dynamic=True, backend="eager")


def test_compiled_equals_eager(compiled):
    for rows, numbers in (
        (["tIIttt", "tttIIt"], [[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 3]]),
        (["tIItttIIt", "ttttttttt"], [[1, 1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 2, 2, 2, 0, 0, 0, 0]]),
    ):
        arguments = {
            "image_grid_thw": ids([[1, 2, 4], [1, 2, 4]]),
            "sequence_ids": ids(numbers),
            "text_positions": True,
            "pad_to_multiple_of": 4,
            "max_sequences": 6,
        }
        rows = ids_of(QWEN, rows)
        assert_same(
            compiled(rows, QWEN, **arguments),
            get_rope_index(rows, QWEN, **arguments),
        )


@pytest.mark.parametrize(
    "numbers",
    [[[2, 2, 1, 1]], [[1, -1, 1, 1]], [[0, 0, 0, 0]], [[1, 2, 3, 4]]],
    ids=["back", "negative", "none", "too many"],
)
def test_compiled_what_is_refused_gives_no_answer(numbers, compiled):
    rows = ids([[7, 8, 9, 7]])
    assert_no_answer(compiled(rows, QWEN, sequence_ids=ids(numbers), max_sequences=3))


# As a model takes it


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
