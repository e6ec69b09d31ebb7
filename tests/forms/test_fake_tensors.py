import ast
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

import vecrope
from tests.forms.prompts import GIVEN, SGLANG, SPECS
from vecrope import get_rope_index

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


# A device that is not the CPU, of which any build of torch has fake tensors.
WHERE = {"cpu": {"form": "static"}, "meta": {}}


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
@pytest.mark.parametrize(
    ("names", "spec", "packed"),
    [
        *(
            pytest.param(names, SGLANG, False, id=f"{given}-sglang-padded")
            for given, names in GIVEN.items()
        ),
        pytest.param(GIVEN["all"], SPECS["transformers"], False, id="all-transformers-padded"),
        *(
            pytest.param(GIVEN[given], SPECS["transformers"], True, id=f"{given}-packed")
            for given in ("ids", "all")
        ),
    ],
)
def test_no_operation_depends_on_values(names, spec, packed, device):
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
    with pytest.raises(ValueError, match="input_ids must hold values, which are read here"):
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
