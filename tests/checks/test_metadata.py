import re

import pytest
import torch

from tests.checks.calls import (
    GRID,
    PACKED,
    SGLANG,
    exactly,
)
from vecrope import get_rope_index, plan_rope_index
from vecrope.checks import check_metadata
from vecrope.inputs import Inputs

IMAGE = SGLANG.image_token_id


# What shapes, dtypes and types alone show

BASE = {
    "input_ids": torch.tensor([[7, IMAGE, IMAGE, 8], [7, 7, 7, 7]]),
    "spec": SGLANG,
    "image_grid_thw": GRID,
}


ENDLESS = torch.empty((1, 2**31 + 1), dtype=torch.int32, device="meta")


def of_float(name, shape):
    return pytest.param(
        {**BASE, name: torch.ones(shape)},
        TypeError,
        f"{name} must be of a signed integer dtype, uint8 or bool, got torch.float32",
        id=f"{name} of floats",
    )


def of_uint16(name, shape):
    return pytest.param(
        {**BASE, name: torch.ones(shape, dtype=torch.uint16)},
        TypeError,
        f"{name} must be of a signed integer dtype, uint8 or bool, got torch.uint16",
        id=f"{name} of unsigned integers",
    )


def no_tensor(name):
    return pytest.param(
        {**BASE, name: [[1, 2, 4]]},
        TypeError,
        f"{name} must be a tensor, got list; torch.tensor({name}) makes one",
        id=f"{name} a list",
    )


METADATA = pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param(
            {**BASE, "image_grid_thw": [torch.tensor([[1, 2, 4]])]},
            TypeError,
            "image_grid_thw must be a tensor, got list; torch.cat(image_grid_thw) makes one",
            id="a list of grids",
        ),
        pytest.param(
            {**BASE, "spec": "glm4v"},
            TypeError,
            "spec must be an MRopeSpec, got 'glm4v'; use MRopeSpec.for_model('glm4v', "
            "convention=...)",
            id="a model type as the spec",
        ),
        pytest.param(
            {**BASE, "spec": "Qwen/Qwen2.5-VL-7B-Instruct"},
            TypeError,
            "spec must be an MRopeSpec, got 'Qwen/Qwen2.5-VL-7B-Instruct'; use "
            "MRopeSpec.for_model('qwen2_5_vl', convention=...)",
            id="a hub name as the spec",
        ),
        pytest.param(
            {**BASE, "spec": {}},
            TypeError,
            "spec must be an MRopeSpec, got dict; use MRopeSpec.from_config(config, "
            "convention=...)",
            id="a dict as the spec",
        ),
        *(
            pytest.param(
                {**BASE, "input_ids": BASE["input_ids"].to(dtype)},
                TypeError,
                f"input_ids must be int64 or int32, got {dtype}",
                id=f"input_ids of {dtype}",
            )
            for dtype in (torch.float32, torch.bool, torch.int16)
        ),
        *(
            no_tensor(name)
            for name in (
                "input_ids",
                "attention_mask",
                "mm_token_type_ids",
                "image_grid_thw",
                "video_grid_thw",
                "cu_seqlens",
            )
        ),
        *(
            pytest.param(
                {**BASE, "input_ids": torch.zeros(shape, dtype=torch.int64)},
                ValueError,
                f"input_ids must have shape (B, T), got {shape}; "
                "packed input of shape (N,) needs cu_seqlens",
                id=f"input_ids {shape}",
            )
            for shape in ((4,), (2, 4, 1), ())
        ),
        pytest.param(
            {**BASE, "cu_seqlens": torch.tensor([0, 8])},
            ValueError,
            "input_ids must have shape (N,) with cu_seqlens, got (2, 4)",
            id="cu_seqlens with padded input_ids",
        ),
        *(
            pytest.param(
                {**PACKED, "cu_seqlens": torch.zeros(shape, dtype=torch.int64)},
                ValueError,
                f"cu_seqlens must have shape (num_sequences + 1,), got {shape}",
                id=f"cu_seqlens {shape}",
            )
            for shape in ((1,), (1, 2), ())
        ),
        pytest.param(
            {**PACKED, "cu_seqlens": torch.tensor([0.0, 4.0])},
            TypeError,
            "cu_seqlens must be of a signed integer dtype, uint8 or bool, got torch.float32",
            id="cu_seqlens of floats",
        ),
        *(
            pytest.param(
                {**BASE, name: torch.ones(shape, dtype=torch.int64)},
                ValueError,
                f"{name} must have the shape of input_ids (2, 4), got {shape}",
                id=f"{name} {shape}",
            )
            for name in ("attention_mask", "mm_token_type_ids")
            for shape in ((1, 4), (2, 3), (8,), (1, 2, 4))
        ),
        of_float("attention_mask", (2, 4)),
        of_float("mm_token_type_ids", (2, 4)),
        of_float("image_grid_thw", (1, 3)),
        of_float("video_grid_thw", (1, 3)),
        of_uint16("attention_mask", (2, 4)),
        of_uint16("mm_token_type_ids", (2, 4)),
        of_uint16("image_grid_thw", (1, 3)),
        of_uint16("video_grid_thw", (1, 3)),
        pytest.param(
            {**BASE, "attention_mask": torch.ones(2, 4, dtype=torch.complex64)},
            TypeError,
            "attention_mask must be of a signed integer dtype, uint8 or bool, got torch.complex64",
            id="attention_mask of complex numbers",
        ),
        *(
            pytest.param(
                {**BASE, f"{kind}_grid_thw": torch.ones(shape, dtype=torch.int64)},
                ValueError,
                f"{kind}_grid_thw must have shape (num_{kind}s, 3), got {shape}",
                id=f"{kind}_grid_thw {shape}",
            )
            for kind in ("image", "video")
            for shape in ((3,), (1, 2), (1, 1, 3))
        ),
        *(
            pytest.param(
                {**BASE, "second_per_grid_ts": seconds},
                ValueError,
                "second_per_grid_ts must be None: glm4v does not space its frames in time",
                id=f"second_per_grid_ts a {type(seconds).__name__}",
            )
            for seconds in (torch.ones(1), [1.0])
        ),
        *(
            pytest.param(
                {"input_ids": input_ids, "spec": SGLANG, **packed},
                ValueError,
                "2147483649 tokens in a row overflow the positions' dtype torch.int32; "
                "use int64 input_ids",
                id=f"overflow, {name}",
            )
            for name, input_ids, packed in (
                ("padded", ENDLESS, {}),
                ("packed", ENDLESS[0], {"cu_seqlens": torch.tensor([0, 2**31 + 1])}),
                (
                    "expanded",
                    torch.zeros(1, 1, dtype=torch.int32).expand(1, 2**31 + 1),
                    {"attention_mask": torch.ones(1, 1).bool().expand(1, 2**31 + 1)},
                ),
            )
        ),
    ],
)


@METADATA
@pytest.mark.parametrize(
    "options",
    [{}, {"validate": False}, {"validate": False, "form": "static"}],
    ids=["validated", "not validated", "static"],
)
def test_metadata_is_refused(arguments, error, message, options):
    with pytest.raises(error, match=exactly(message)):
        get_rope_index(**{**options, **arguments})


@pytest.mark.parametrize(*METADATA.args[:1], METADATA.args[1][::9])
def test_metadata_is_refused_under_compile(arguments, error, message):
    torch.compiler.reset()
    compiled = torch.compile(get_rope_index, dynamic=False, backend="eager")
    with pytest.raises(error, match=exactly(message)):
        compiled(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize(*METADATA.args[:1], METADATA.args[1][::3])
def test_metadata_is_refused_under_compile_of_the_full_graph(arguments, error, message):
    # Dynamo wraps what the traced function raises, and quotes it.
    torch.compiler.reset()
    compiled = torch.compile(get_rope_index, fullgraph=True, dynamic=False, backend="eager")
    quoted = re.escape(f"raised exception {error.__name__}({message!r})")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=quoted):
        compiled(**arguments)


def test_metadata_is_refused_under_compile_for_any_size():
    # Sizes are shown as symbols there, by torch 2.11 as the parts of a message.
    torch.compiler.reset()
    compiled = torch.compile(get_rope_index, fullgraph=True, dynamic=True, backend="eager")
    shown = r"ValueError\(.*'attention_mask.* must have the shape of input_ids "
    with pytest.raises(torch._dynamo.exc.Unsupported, match=shown):
        compiled(BASE["input_ids"], SGLANG, attention_mask=torch.ones(3, 5).bool())


def test_metadata_is_refused_under_export():
    class RopeIndex(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return get_rope_index(input_ids, SGLANG, attention_mask=attention_mask)

    message = "attention_mask must have the shape of input_ids (2, 4), got (2, 3)"
    with pytest.raises(ValueError, match=exactly(message)):
        torch.export.export(RopeIndex(), (BASE["input_ids"], torch.ones(2, 3).bool()))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        *((value, TypeError, f"must be an int, got {value!r}") for value in (64.0, True, "64")),
        *((value, ValueError, f"must be at least 1, got {value}") for value in (0, -1)),
    ],
    ids=repr,
)
def test_a_capacity_is_a_positive_number(value, error, message):
    with pytest.raises(error, match=exactly(f"max_groups {message}")):
        plan_rope_index(**BASE, max_groups=value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_more_tokens_than_the_indices_of_the_static_form_reach_are_refused(dtype):
    many = torch.zeros((1, 1), dtype=dtype).expand(2**30, 2)
    message = (
        "input_ids must hold fewer than 2**31 tokens, got 2147483648; the eager form takes more"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        get_rope_index(many, SGLANG, form="static")
    with pytest.raises(ValueError, match=exactly(message)):
        plan_rope_index(many, SGLANG, max_groups=1)


@pytest.mark.parametrize(
    "input_ids",
    [ENDLESS[:, 1:], ENDLESS.to(torch.int64), torch.empty_like(ENDLESS[:, :2]).expand(2**31, 2)],
    ids=["as long as int32 allows", "int64", "many rows"],
)
def test_a_length_that_does_not_overflow_is_no_fault(input_ids):
    assert check_metadata(Inputs(input_ids), SGLANG) is None
