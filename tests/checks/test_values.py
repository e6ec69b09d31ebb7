import pytest
import torch

from tests.checks.calls import (
    FORMS,
    exactly,
    packed,
    symbols,
)
from vecrope import get_rope_index

# What values show, one argument at a time


def replaced(name, row, token, value, dtype=torch.int64):
    values = torch.zeros(2, 4, dtype=dtype)
    values[row, token] = value
    return {**symbols("tttt", "tttt"), name: values}


GRID_FAULTS = {
    "a negative side": ((1, -2, 4), "must be positive, or all zeros for no {kind}"),
    "two negative sides": ((1, -2, -4), "must be positive, or all zeros for no {kind}"),
    "a negative number of frames": ((-1, 2, 4), "must be positive, or all zeros for no {kind}"),
    "no frame": ((0, 2, 4), "must be positive, or all zeros for no {kind}"),
    "no height": ((1, 0, 4), "must be positive, or all zeros for no {kind}"),
    "no width": ((1, 2, 0), "must be positive, or all zeros for no {kind}"),
    "an odd height": (
        (1, 3, 4),
        "must have a height and width divisible by spatial_merge_size 2",
    ),
    "an odd width": (
        (3, 2, 5),
        "must have a height and width divisible by spatial_merge_size 2",
    ),
    "an odd and negative width": ((1, 2, -5), "must be positive, or all zeros for no {kind}"),
}


SEQUENCES = "; the numbers of several sequences are sequence_ids"


@FORMS
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            pytest.param(
                replaced(name, row, token, value, dtype),
                f"row {row}, token {token}: {name} must hold {codes}, got {value}"
                + SEQUENCES * (name == "attention_mask" and value > 1),
                id=f"{name} {value} of {dtype}",
            )
            for name, codes, out in (
                ("attention_mask", "0 or 1", 2),
                ("mm_token_type_ids", "0 or 1 or 2", 3),
            )
            for row, token, value, dtype in (
                (1, 2, out, torch.int64),
                (0, 3, -1, torch.int64),
                (1, 0, -128, torch.int8),
                (0, 0, 255, torch.uint8),
                (1, 3, 2**31, torch.int64),
                (1, 3, 2**32, torch.int64),
                (1, 3, -(2**32), torch.int64),
            )
        ),
        pytest.param(
            packed([0, 4], attention_mask=torch.tensor([1, 1, 5, 1])),
            "token 2: attention_mask must hold 0 or 1, got 5",
            id="attention_mask of packed input",
        ),
        pytest.param(
            packed([0, 4], mm_token_type_ids=torch.tensor([0, 9, 0, 9])),
            "token 1: mm_token_type_ids must hold 0 or 1 or 2, got 9",
            id="mm_token_type_ids of packed input",
        ),
        pytest.param(
            packed([0, 3]),
            "cu_seqlens must run from 0 to the number of tokens 4, got 0 to 3",
            id="cu_seqlens that end early",
        ),
        pytest.param(
            packed([0, 2, 5]),
            "cu_seqlens must run from 0 to the number of tokens 4, got 0 to 5",
            id="cu_seqlens that end late",
        ),
        pytest.param(
            packed([1, 4]),
            "cu_seqlens must run from 0 to the number of tokens 4, got 1 to 4",
            id="cu_seqlens that start late",
        ),
        pytest.param(
            packed([0, 1, 3, 2, 4]),
            "cu_seqlens must not decrease, got 3 then 2 at sequence 2",
            id="cu_seqlens that decrease",
        ),
        *(
            pytest.param(
                symbols("t<II>t", **{f"{kind}s": grids}),
                f"{kind}_grid_thw row {row} {fault.format(kind=kind)}, got {grid}",
                id=f"{kind} grid with {name} in row {row}",
            )
            for kind in ("image", "video")
            for name, (grid, fault) in GRID_FAULTS.items()
            for row, grids in enumerate(([grid], [(1, 2, 4), grid]))
        ),
        *(
            pytest.param(
                symbols("t<II>t", **{f"{kind}s": grids}),
                f"{kind}_grid_thw must describe fewer than 2**30 tokens, "
                f"row {len(grids) - 1} {grids[-1]} exceeds that",
                id=f"{kind} grids of too many tokens, {name}",
            )
            for kind in ("image", "video")
            for name, grids in (
                ("in frames", [(2**30, 2, 2)]),
                ("in lines", [(1, 2, 4), (1, 2**33, 2)]),
                ("as a product", [(1, 2**18, 2**18)]),
                ("as a product of 2**66", [(2**22, 2**23, 2**23)]),
                ("as a sum", [(2**29, 2, 2), (2**28, 2, 2), (2**28, 2, 2)]),
            )
        ),
        *(
            pytest.param(
                {
                    **symbols("t", images=[(1, 2, 4), (1, 2, 2)], videos=[(3, 2, 2)]),
                    "input_ids": torch.empty(shape, dtype=torch.int64),
                },
                "image_grid_thw row 0 (1, 2, 4) is left over: expected 3 image tokens in all, "
                "got 0 (image_token_id 151343 does not occur in input_ids)",
                id=f"grids for input_ids {shape}",
            )
            for shape in ((2, 0), (0, 4), (0, 0))
        ),
    ],
)
def test_a_value_is_refused(arguments, message, form):
    with pytest.raises(ValueError, match=exactly(message)):
        get_rope_index(**arguments, **form)
