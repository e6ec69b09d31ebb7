from dataclasses import replace

import pytest
import torch
from hypothesis import given
from support import (
    assert_no_answer,
    assert_same,
    enlarged,
    fitting,
    grid_list,
    random_traffic,
    roomy,
    rope_index,
)
from torch._dynamo.testing import CompileCounterWithBackend

from tests.forms.prompts import GIVEN, SGLANG, SPECS, WARM_UP
from vecrope import get_rope_index
from vecrope.testing import Prompt

# torch.compile


@pytest.fixture
def compiled():
    def compile_rope_index(backend):
        counter = CompileCounterWithBackend(backend)
        function = torch.compile(get_rope_index, fullgraph=True, dynamic=True, backend=counter)
        return function, counter

    torch._dynamo.reset()
    yield compile_rope_index
    torch._dynamo.reset()


def batch_of(rows, tokens, images, videos):
    """Return a prompt of so many rows, tokens a row, images and videos, of one token each."""
    marks = ["I"] * images + ["[I]"] * videos
    lines = ["t".join(marks[row::rows]).ljust(tokens, "t") for row in range(rows)]
    return Prompt.from_symbols(
        SGLANG,
        lines,
        mask=["1" * tokens] * rows,
        image_grid_thw=[[1, 2, 2]] * images,
        video_grid_thw=[[1, 2, 2]] * videos,
    )


@pytest.mark.parametrize(
    ("spec", "backend", "validate"),
    [
        pytest.param(SPECS["sglang"], "aot_eager", True, id="sglang-checked"),
        pytest.param(SPECS["transformers"], "eager", False, id="transformers-unchecked"),
    ],
)
def test_compiled_equals_eager_and_compiles_once(spec, backend, validate, compiled):
    function, counter = compiled(backend)
    rope_index(replace(WARM_UP, spec=spec), function, validate=validate)

    @given(fitting(spec))
    def check(prompt):
        prompt = roomy(prompt)
        assert_same(rope_index(prompt, function, validate=validate), rope_index(prompt))

    check()
    assert counter.frame_count == 1


def test_sizes_and_counts_change_without_a_recompile(compiled):
    function, counter = compiled("eager")
    for prompt in (
        WARM_UP,
        batch_of(3, 40, 5, 4),
        batch_of(7, 12, 2, 2),
        batch_of(4, 8, 4, 4),
        batch_of(2, 200, 30, 9),
        batch_of(64, 5, 30, 34),
    ):
        assert_same(rope_index(prompt, function), prompt.expected())
        assert counter.frame_count == 1

    # A size of one is compiled on its own: torch's own doing, which shows that the counter counts.
    for prompt in (batch_of(1, 30, 2, 3), batch_of(1, 50, 5, 4), batch_of(3, 40, 5, 4)):
        assert_same(rope_index(prompt, function), prompt.expected())
        assert counter.frame_count == 2


@pytest.mark.slow
def test_a_day_of_traffic_compiles_twice(compiled):
    function, counter = compiled("eager")
    for request in random_traffic(SGLANG, 2000):
        batch, seq_len = request.input_ids.shape
        # As the README says: a mask always, and no number of grids that torch takes for constant.
        most = max(len(grid_list(request.image_grid_thw)), len(grid_list(request.video_grid_thw)))
        prompt = enlarged(request, rows=batch, tokens=seq_len, grids=max(most, 2))
        answer = rope_index(prompt, function, validate=False)
        assert_same(answer, rope_index(request))
    # One row, and more than one.
    assert counter.frame_count == 2


def test_new_values_in_old_shapes_give_new_answers(compiled):
    function, counter = compiled("eager")
    grids = {"image_grid_thw": [[1, 4, 4], [1, 2, 2]], "video_grid_thw": [[1, 2, 2], [0, 0, 0]]}
    answers = [
        rope_index(Prompt.from_symbols(SGLANG, rows, mask=mask, **grids), function)
        for rows, mask in (
            (["IIIItItt[", "t[I]ttttt"], ["1" * 9] * 2),
            (["t[I]ttttt", "IIIItItt["], ["1" * 9] * 2),
            (["ttIIIItII", "I[I]]ttII"], ["111111100", "111111100"]),
        )
    ]
    first, second, third = (position_ids for position_ids, _ in answers)
    assert torch.equal(first.flip(1), second)
    assert third[:, 0].tolist() == [
        [0, 1, 2, 2, 2, 2, 4, 1, 1],
        [0, 1, 2, 2, 3, 3, 4, 1, 1],
        [0, 1, 2, 3, 2, 3, 4, 1, 1],
    ]
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("names", "packed"),
    [
        pytest.param(GIVEN["ids"], False, id="ids"),
        pytest.param([*GIVEN["types"], *GIVEN["grids"]], False, id="types"),
        pytest.param(GIVEN["all"], True, id="all, packed"),
    ],
)
def test_compiled_with_more_or_fewer_arguments(names, packed, compiled):
    function, counter = compiled("eager")
    for prompt in (WARM_UP, batch_of(6, 40, 5, 2), batch_of(3, 20, 2, 6)):
        batch, seq_len = prompt.input_ids.shape
        arguments = {
            name: value if name in names else None for name, value in prompt.arguments().items()
        }
        arguments["input_ids"] = prompt.input_ids
        if "image_grid_thw" not in names:
            arguments["input_ids"] = torch.full_like(prompt.input_ids, 11)
        if packed:
            arguments = {
                name: value if "grid" in name else value.flatten()
                for name, value in arguments.items()
            }
            # Rows of their own, then empty sequences.
            bounds = [*range(0, batch * seq_len + 1, seq_len), *[batch * seq_len] * 4]
            arguments["cu_seqlens"] = torch.tensor(bounds)
        answer = rope_index(prompt, function, **arguments)
        assert_same(answer, rope_index(prompt, **arguments))
    assert counter.frame_count == 1


def test_compiled_a_misfit_gives_no_answer(compiled):
    function, _ = compiled("eager")
    assert_same(rope_index(WARM_UP, function), WARM_UP.expected())
    for grids in (WARM_UP.image_grid_thw.flip(0), torch.full((4, 3), 2)):
        assert_no_answer(rope_index(WARM_UP, function, image_grid_thw=grids))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": WARM_UP.input_ids.float()}, "input_ids must be int64 or int32"),
        ({"attention_mask": torch.ones(3, 8)}, "attention_mask must be of a"),
        (
            {"image_grid_thw": torch.ones(3, 2, dtype=torch.int64)},
            "image_grid_thw.* must have shape",  # torch 2.11 shows the parts of the message
        ),
        ({"form": "eager"}, "form 'eager' cannot take this call: the call is traced"),
    ],
    ids=["ids", "mask", "grids", "form"],
)
def test_compiled_the_metadata_is_checked(changes, message, compiled):
    function, _ = compiled("eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=message):
        rope_index(WARM_UP, function, **changes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_to_machine_code_equals_eager(compiled):
    function, counter = compiled("inductor")
    for prompt in (WARM_UP, batch_of(3, 40, 5, 4), batch_of(64, 5, 30, 34)):
        assert_same(rope_index(prompt, function), prompt.expected())
    misfit = replace(WARM_UP, input_ids=WARM_UP.input_ids.flip(0))
    assert_no_answer(rope_index(misfit, function))
    assert counter.frame_count == 1
