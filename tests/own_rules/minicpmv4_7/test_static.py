"""MiniCPM-V 4.7: shapes fixed by shapes, tracing, and rows that do not see each other."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import assert_no_answer, assert_same
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

from tests.own_rules.minicpmv4_7.batches import SPECS, arguments_of, batches, each_spec
from vecrope import get_rope_index
from vecrope.testing import Prompt, conversations

# No operation depends on values: fake tensors have none


def fake_arguments(device):
    ids = torch.empty((2, 7), dtype=torch.int64, device=device)
    return {
        "input_ids": ids,
        "attention_mask": torch.empty_like(ids, dtype=torch.bool),
        "mm_token_type_ids": torch.empty_like(ids, dtype=torch.int32),
        "target_sizes": torch.empty((3, 2), dtype=torch.int32, device=device),
        "target_sizes_videos": torch.empty((2, 2), dtype=torch.int64, device=device),
    }


SIZES = ["target_sizes", "target_sizes_videos"]
GIVEN = {
    "ids": [],
    "mask": ["attention_mask"],
    "types": ["mm_token_type_ids"],
    "sizes": SIZES,
    "one kind": SIZES[1:],
    "all": ["attention_mask", "mm_token_type_ids", *SIZES],
}


@pytest.mark.parametrize("names", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@each_spec
def test_no_operation_depends_on_values(spec, packed, names):
    with FakeTensorMode():
        arguments = fake_arguments("meta")
        arguments = {name: arguments[name] for name in ("input_ids", *names)}
        shapes = (3, 2, 7), (2, 1)
        if packed:
            for name in {"input_ids", "attention_mask", "mm_token_type_ids"} & set(arguments):
                arguments[name] = arguments[name].flatten()
            arguments["cu_seqlens"] = torch.empty(5, dtype=torch.int32, device="meta")
            shapes = (3, 14), (4, 1)
        answer = get_rope_index(spec=spec, validate=False, **arguments)
    assert tuple(tuple(tensor.shape) for tensor in answer) == shapes
    assert {(tensor.dtype, tensor.device.type) for tensor in answer} == {(torch.int64, "meta")}


def test_checks_of_values_read_them():
    with FakeTensorMode():
        arguments = fake_arguments("cpu")
        del arguments["attention_mask"], arguments["mm_token_type_ids"]
        with pytest.raises(ValueError, match="must hold values, which are read here"):
            get_rope_index(spec=SPECS["sglang"], **arguments)


def test_sizes_on_another_device_are_moved_to_the_ids():
    with FakeTensorMode():
        sizes = {name: fake_arguments("cpu")[name] for name in SIZES}
        ids = fake_arguments("meta")["input_ids"]
        answer = get_rope_index(ids, SPECS["sglang"], validate=False, **sizes)
    assert {tensor.device.type for tensor in answer} == {"meta"}


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests():
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("upstream", "validate"),
    [("transformers", False), ("sglang", True)],
)
def test_one_graph_answers_prompts_of_many_shapes(upstream, validate):
    spec = SPECS[upstream]
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(get_rope_index, backend=counter, fullgraph=True, dynamic=True)
    for prompt in batches(spec):
        answer = compiled(spec=spec, validate=validate, **arguments_of(prompt, by_types=False))
        assert_same(answer, prompt.expected())
    assert counter.frame_count == 1


def test_types_are_traced_too():
    spec = SPECS["transformers"]
    compiled = torch.compile(get_rope_index, backend="eager", fullgraph=True, dynamic=True)
    for prompt in batches(spec):
        answer = compiled(spec=spec, **arguments_of(prompt, by_types=True))
        assert_same(answer, prompt.expected(by_types=True))


@pytest.mark.parametrize(
    ("upstream", "misfits"),
    [
        pytest.param(
            "transformers",
            {
                "sizes": ("t(I)tttt(I)", [[4, 8], [4, 4]]),
                "an indivisible size": ("tttt(II)(I)", [[4, 8], [4, 6]]),
                "nothing before a crop": ("Ittttttt(I)", [[4, 4], [4, 4]]),
            },
        ),
        pytest.param("sglang", {"markers": ("t((I)t(I)", [[4, 4], [4, 4]])}),
    ],
)
def test_under_tracing_what_does_not_fit_gets_no_answer(upstream, misfits):
    compiled = torch.compile(get_rope_index, backend="eager", fullgraph=True, dynamic=True)
    for row, sizes in misfits.values():
        prompt = Prompt.from_symbols(SPECS[upstream], [row] * 2, target_sizes=sizes * 2)
        arguments = arguments_of(prompt, by_types=False)
        with pytest.raises(ValueError, match=r"target_sizes|row 0, token"):
            get_rope_index(spec=prompt.spec, **arguments)
        assert_no_answer(compiled(spec=prompt.spec, **arguments))


# Rows, and forms of the same input


def rows_of(prompt):
    """Yield each row as a prompt of its own, with the sizes that it takes."""
    at = {"target_sizes": 0, "target_sizes_videos": 0}
    for row in range(len(prompt.symbols)):
        own = {}
        for name, kind in (("target_sizes", 1), ("target_sizes_videos", 2)):
            types = torch.nn.functional.pad(prompt.mm_token_type_ids[row] == kind, (1, 0))
            count = int((types[1:] & ~types[:-1]).sum())
            sizes = getattr(prompt, name)
            own[name] = None if sizes is None else sizes[at[name] : at[name] + count]
            at[name] += count
        mask = prompt.attention_mask
        yield replace(
            prompt,
            input_ids=prompt.input_ids[row : row + 1],
            attention_mask=None if mask is None else mask[row : row + 1],
            mm_token_type_ids=prompt.mm_token_type_ids[row : row + 1],
            **own,
        )


@each_spec
def test_a_batch_is_its_rows_one_by_one(spec):
    @given(conversations(spec), st.booleans())
    def check(prompt, by_types):
        position_ids, rope_deltas = get_rope_index(
            spec=spec, **arguments_of(prompt, by_types=by_types)
        )
        alone = [
            get_rope_index(spec=spec, **arguments_of(row, by_types=by_types))
            for row in rows_of(prompt)
        ]
        assert torch.equal(position_ids, torch.cat([answer[0] for answer in alone], 1))
        assert torch.equal(rope_deltas, torch.cat([answer[1] for answer in alone]))

    check()


@each_spec
def test_packed_prompts_are_answered_as_padded_ones(spec):
    @given(conversations(spec, masks=False), st.booleans())
    def check(prompt, by_types):
        arguments = arguments_of(prompt, by_types=by_types)
        batch_size, seq_len = prompt.input_ids.shape
        expected = get_rope_index(spec=spec, **arguments)
        for name in ("input_ids", "mm_token_type_ids"):
            if arguments[name] is not None:
                arguments[name] = arguments[name].flatten()
        # An empty sequence at each end.
        bounds = torch.arange(-1, batch_size + 2).clamp(0, batch_size) * seq_len
        position_ids, rope_deltas = get_rope_index(spec=spec, cu_seqlens=bounds, **arguments)
        assert torch.equal(position_ids, expected[0].flatten(1))
        assert rope_deltas.tolist() == [[0], *expected[1].tolist(), [0]]

    check()


@each_spec
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16], ids=str)
def test_any_integers_will_do(spec, dtype):
    for prompt in batches(spec):
        arguments = arguments_of(prompt, by_types=True)
        arguments = {name: value.to(dtype) for name, value in arguments.items()}
        arguments["input_ids"] = prompt.input_ids.int()
        assert_same(get_rope_index(spec=spec, **arguments), prompt.expected(by_types=True))


def test_no_argument_is_changed_and_no_answer_is_an_alias():
    prompt = next(batches(SPECS["transformers"]))
    before = {name: value.clone() for name, value in prompt.arguments().items()}
    answer = get_rope_index(spec=prompt.spec, **prompt.arguments())
    for tensor in answer:
        tensor.fill_(7)
    for name, value in prompt.arguments().items():
        assert torch.equal(value, before[name]), name
    assert_same(get_rope_index(spec=prompt.spec, **prompt.arguments()), prompt.expected())


def test_other_dtypes_of_positions():
    prompt = next(batches(SPECS["transformers"]))
    expected = prompt.expected()[0]
    for name, dtype in (("ids", torch.int32), ("float32", torch.float32)):
        spec = replace(prompt.spec, position_dtype=name)
        arguments = {**prompt.arguments(), "input_ids": prompt.input_ids.int()}
        position_ids, _ = get_rope_index(spec=spec, **arguments)
        assert torch.equal(position_ids, expected.to(dtype))
        assert position_ids.dtype == dtype
