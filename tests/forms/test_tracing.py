import ast
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from support import (
    CONVENTIONS,
    assert_no_answer,
    assert_same,
    enlarged,
    fitting,
    grid_list,
    grid_tensor,
    kept,
    misfitting,
    random_traffic,
    roomy,
    rope_index,
    spec_of,
)
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.export import Dim

import vecrope
from vecrope import get_rope_index
from vecrope.testing import Prompt

SPECS = {convention: spec_of("glm4v", convention) for convention in CONVENTIONS}
SGLANG = SPECS["sglang"]
each_convention = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
each_validate = pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])


def num_runs(prompt):
    """Count the runs of text, images, videos and masked tokens, row by row."""
    masked = 3
    codes = prompt.mm_token_type_ids.masked_fill(~kept(prompt), masked)
    return sum(len(list(groupby(row))) for row in codes.tolist())


# No operation depends on values: fake tensors have none


@pytest.fixture
def fake():
    with FakeTensorMode():
        yield


def fake_arguments(device, seq_len=7):
    ids = torch.empty((2, seq_len), dtype=torch.int64, device=device)
    grids = torch.empty((3, 3), dtype=torch.int32, device=device)
    return {
        "input_ids": ids,
        "attention_mask": torch.empty_like(ids, dtype=torch.bool),
        "mm_token_type_ids": torch.empty_like(ids),
        "image_grid_thw": grids,
        "video_grid_thw": grids[:0],
    }


GIVEN = {
    "ids": [],
    "mask": ["attention_mask"],
    "types": ["mm_token_type_ids"],
    "grids": ["image_grid_thw", "video_grid_thw"],
    "all": ["attention_mask", "mm_token_type_ids", "image_grid_thw", "video_grid_thw"],
}
# A device that is not the CPU, of which any build of torch has fake tensors.
WHERE = {"cpu": {"form": "static"}, "meta": {}}
each_given = pytest.mark.parametrize("names", GIVEN.values(), ids=GIVEN.keys())
each_device = pytest.mark.parametrize("device", WHERE)


@pytest.mark.usefixtures("fake")
@each_device
@pytest.mark.parametrize(
    "planted",
    [
        lambda ids: ids[0, 0].item(),
        lambda ids: bool((ids > 0).any()),
        lambda ids: ids.tolist(),
        lambda ids: ids.nonzero(),
        lambda ids: ids[ids > 0],
        lambda ids: ids.unique(),
        lambda ids: torch.repeat_interleave(ids[0]),
    ],
    ids=["item", "bool", "tolist", "nonzero", "boolean index", "unique", "repeat_interleave"],
)
def test_the_probe_catches_what_is_planted(planted, device):
    def planted_rope_index(input_ids, spec, **arguments):
        answer = get_rope_index(input_ids, spec, **arguments)
        planted(input_ids)
        return answer

    ids = fake_arguments(device)["input_ids"]
    arguments = {"validate": False, "form": "static"}
    get_rope_index(ids, SGLANG, **arguments)
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        planted_rope_index(ids, SGLANG, **arguments)


@pytest.mark.usefixtures("fake")
@each_device
@each_given
@each_convention
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_no_operation_depends_on_values(packed, spec, names, device):
    arguments = {
        name: value
        for name, value in fake_arguments(device).items()
        if name in ("input_ids", *names)
    }
    expected = (3, 2, 7), (2, 1)
    if packed:
        arguments = {
            name: value if "grid" in name else value.flatten() for name, value in arguments.items()
        }
        arguments["cu_seqlens"] = torch.empty(5, dtype=torch.int32, device=device)
        expected = (3, 14), (4, 1)
    position_ids, rope_deltas = get_rope_index(
        spec=spec, validate=False, **arguments, **WHERE[device]
    )
    assert (tuple(position_ids.shape), tuple(rope_deltas.shape)) == expected
    assert (position_ids.dtype, rope_deltas.dtype) == (torch.int64, torch.int64)
    assert position_ids.device.type == rope_deltas.device.type == device


def assigned_numbers(source):
    """Return the lines that assign a number to elements, which on CUDA copies it from the host."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign | ast.AugAssign) and isinstance(node.value, ast.Constant)
        for target in getattr(node, "targets", [getattr(node, "target", None)])
        if isinstance(target, ast.Subscript)
    ]


def test_no_number_is_copied_from_the_host():
    assert assigned_numbers("a[0, 1] = 0\nb[c] = True\nd[0] = e\nf = 1\n") == [1, 2]
    package = Path(vecrope.__file__).parent
    files = [package / "checks.py", package / "rope_index.py", package / "forms" / "static.py"]
    files += [*package.glob("core/*.py"), *package.glob("own_rules/**/*.py")]
    assert len(files) > 12
    for file in files:
        assert assigned_numbers(file.read_text(encoding="utf-8")) == [], file


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "arguments",
    [{"validate": False}, {"form": "static"}],
    ids=["the eager form", "checks of values"],
)
def test_on_a_cpu_the_defaults_read_values(arguments):
    ids = fake_arguments("cpu")["input_ids"]
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        get_rope_index(ids, SGLANG, image_grid_thw=ids.new_empty((3, 3)), **arguments)


@pytest.mark.usefixtures("fake")
def test_grids_on_another_device_are_moved_to_the_ids():
    ids = fake_arguments("meta")["input_ids"]
    grids = {name: value for name, value in fake_arguments("cpu").items() if name != "input_ids"}
    answer = get_rope_index(ids, SGLANG, validate=False, **grids)
    assert {tensor.device.type for tensor in answer} == {"meta"}


@pytest.mark.usefixtures("fake")
def test_bounds_on_another_device_are_moved_to_the_ids():
    ids = fake_arguments("meta")["input_ids"].flatten()
    bounds = torch.empty(3, dtype=torch.int32)
    answer = get_rope_index(ids, SGLANG, validate=False, cu_seqlens=bounds)
    assert {tensor.device.type for tensor in answer} == {"meta"}


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


# Sizes that differ from each other and from the grids' three columns: where two are equal at the
# first call, torch compiles for their equality, and once more when it ends.
WARM_UP = Prompt.from_symbols(
    SGLANG,
    ["<II>t[I]", "[ItI]<I>"],
    mask=["11111111", "11111110"],
    image_grid_thw=[[1, 2, 4], [1, 2, 2], [0, 0, 0], [0, 0, 0]],
    video_grid_thw=[[1, 2, 2], [2, 2, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0]],
)


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
        pytest.param(GIVEN["all"], False, id="all"),
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
            r"image_grid_thw must have shape",
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
