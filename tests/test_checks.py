import re

import pytest
import torch
from hypothesis import given

from vecrope import MRopeSpec, get_rope_index, plan_rope_index
from vecrope.checks import check_metadata
from vecrope.core.items import make_items
from vecrope.inputs import Inputs
from vecrope.rope_index import rope_index_of
from vecrope.testing import Prompt, Refusal, assert_matches, conversations, token_soup

SGLANG = MRopeSpec.for_model("glm4v", convention="sglang")
TRANSFORMERS = MRopeSpec.for_model("glm4v", convention="transformers")
IMAGE = SGLANG.image_token_id
GRID = torch.tensor([[1, 2, 4]])
FORMS = pytest.mark.parametrize("form", [{}, {"form": "static"}], ids=["eager", "static"])


def exactly(message):
    return f"^{re.escape(message)}$"


def rope_index(prompt, **options):
    return get_rope_index(spec=prompt.spec, **{**prompt.arguments(), **options})


def assert_answers(prompt, **options):
    assert_matches(lambda **arguments: rope_index(prompt, **{**arguments, **options}), prompt)


def symbols(*rows, images=None, videos=None, mask=None):
    """Return the arguments of a prompt of which no types are given, only ids."""
    prompt = Prompt.from_symbols(
        SGLANG, rows, image_grid_thw=images, video_grid_thw=videos, mask=mask
    )
    return {**prompt.arguments(), "mm_token_type_ids": None, "spec": SGLANG}


# What shapes, dtypes and types alone show

BASE = {
    "input_ids": torch.tensor([[7, IMAGE, IMAGE, 8], [7, 7, 7, 7]]),
    "spec": SGLANG,
    "image_grid_thw": GRID,
}
PACKED = {"input_ids": torch.zeros(4, dtype=torch.int64), "spec": SGLANG}
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
        f"{name} must be a tensor, got list",
        id=f"{name} a list",
    )


METADATA = pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param(
            {**BASE, "spec": "glm4v"}, TypeError, "spec must be an MRopeSpec, got str", id="spec"
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


@METADATA
def test_metadata_is_refused_under_compile(arguments, error, message):
    torch.compiler.reset()
    compiled = torch.compile(get_rope_index, dynamic=False, backend="eager")
    with pytest.raises(error, match=exactly(message)):
        compiled(**arguments)


@METADATA
def test_metadata_is_refused_under_compile_of_the_full_graph(arguments, error, message):
    # Dynamo wraps what the traced function raises, and quotes it.
    torch.compiler.reset()
    compiled = torch.compile(get_rope_index, fullgraph=True, dynamic=False, backend="eager")
    quoted = re.escape(f"raised exception {error.__name__}({message!r})")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=quoted):
        compiled(**arguments)


def test_metadata_is_refused_under_compile_for_any_size():
    # Sizes are shown as symbols there.
    torch.compiler.reset()
    compiled = torch.compile(get_rope_index, fullgraph=True, dynamic=True, backend="eager")
    shown = r"ValueError\('attention_mask must have the shape of input_ids \(s\d+, s\d+\), got \("
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


# What values show, one argument at a time


def replaced(name, row, token, value, dtype=torch.int64):
    values = torch.zeros(2, 4, dtype=dtype)
    values[row, token] = value
    return {**symbols("tttt", "tttt"), name: values}


def packed(bounds, **arguments):
    return {**PACKED, "cu_seqlens": torch.tensor(bounds), **arguments}


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
                f"{name} must hold {codes}, got {value} in row {row}, token {token}"
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
            "attention_mask must hold 0 or 1, got 5 in token 2",
            id="attention_mask of packed input",
        ),
        pytest.param(
            packed([0, 4], mm_token_type_ids=torch.tensor([0, 9, 0, 9])),
            "mm_token_type_ids must hold 0 or 1 or 2, got 9 in token 1",
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
                "the grids describe 3 image tokens and 3 video tokens, input_ids hold none",
                id=f"grids for input_ids {shape}",
            )
            for shape in ((2, 0), (0, 4), (0, 0))
        ),
    ],
)
def test_a_value_is_refused(arguments, message, form):
    with pytest.raises(ValueError, match=exactly(message)):
        get_rope_index(**arguments, **form)


# What values show of how tokens and grids fit

CUT = (
    "row {row}, {what}: its grid {grid} needs {needs} tokens, got {got} in one run; "
    "was the prompt truncated inside the {kind}?"
)


def cut(what, grid, needs, got):
    kind = "video" if "video" in what else "image"
    return lambda row: CUT.format(row=row, what=what, grid=grid, needs=needs, got=got, kind=kind)


def surplus(kind, expected, grids, got):
    return lambda row: (
        f"row {row} holds {kind} tokens beyond the last grid: "
        f"expected {expected} for the {grids} rows of {kind}_grid_thw, got {got} in the batch"
    )


def left_over(kind, item, grid, expected, got, after=""):
    return lambda _: (
        f"{kind}_grid_thw row {item} {grid} is left over{after}: "
        f"expected {expected} {kind} tokens in the batch, got {got}"
    )


LAYOUTS = {
    # The prompt holds more than the grids describe.
    "fewer grids than images": (
        symbols("t<I>t<II>", images=[(1, 2, 2)]),
        surplus("image", 1, 1, 3),
    ),
    "images without grids": (symbols("t<I>t<II>"), surplus("image", 0, 0, 3)),
    "images, an empty tensor of grids": (symbols("t<I>", images=[]), surplus("image", 0, 0, 1)),
    "images, grids of zeros alone": (
        symbols("t<I>", images=[(0, 0, 0)] * 3),
        surplus("image", 0, 3, 1),
    ),
    "fewer frames in the grids than in the prompt": (
        symbols("[I]t[I]t[I]", videos=[(2, 2, 2)]),
        surplus("video", 2, 1, 3),
    ),
    "frames without grids": (symbols("[I]t[I]"), surplus("video", 0, 0, 2)),
    "a frame whose grid is an image's": (
        symbols("[II]", images=[(1, 2, 4)]),
        surplus("video", 0, 0, 2),
    ),
    "an image whose grid is a video's": (
        symbols("<II>", videos=[(1, 2, 4)]),
        surplus("image", 0, 0, 2),
    ),
    "an image after a sound video, without a grid": (
        symbols("[II]t<III>", videos=[(1, 2, 4)]),
        surplus("image", 0, 0, 3),
    ),
    "an image run one token too long": (
        symbols("<III>t", images=[(1, 2, 4)]),
        surplus("image", 2, 1, 3),
    ),
    "an image run twice too long": (
        symbols("<IIII>t", images=[(1, 2, 4)]),
        surplus("image", 2, 1, 4),
    ),
    "an image run twice too long, before a video": (
        symbols("<IIII>[I]", images=[(1, 2, 4)], videos=[(1, 2, 2)]),
        surplus("image", 2, 1, 4),
    ),
    "a last frame one token too long": (
        symbols("[II]t[III]", videos=[(2, 2, 4)]),
        surplus("video", 4, 1, 5),
    ),
    "a last frame twice too long": (
        symbols("[II]t[IIII]", videos=[(2, 2, 4)]),
        surplus("video", 4, 1, 6),
    ),
    "an image run too long, before another image": (
        symbols("<III>t<II>", images=[(1, 2, 4)]),
        surplus("image", 2, 1, 5),
    ),
    # A run ends inside an image or a frame.
    "a prompt truncated inside an image": (
        symbols("tt<III", images=[(1, 4, 4)]),
        cut("image 0", (1, 4, 4), 4, 3),
    ),
    "a prompt truncated inside a second image": (
        symbols("<II>t<III", images=[(1, 2, 4), (0, 0, 0), (1, 4, 4)]),
        cut("image 2", (1, 4, 4), 4, 3),
    ),
    "a prompt truncated inside an image of two frames": (
        symbols("<III", images=[(2, 2, 4)]),
        cut("image 0", (2, 2, 4), 4, 3),
    ),
    "a prompt truncated inside the second of touching images": (
        symbols("<III", images=[(1, 2, 4), (1, 2, 4)]),
        cut("image 1", (1, 2, 4), 2, 1),
    ),
    "a prompt truncated inside a frame": (
        symbols("[II]t[I", videos=[(2, 2, 4)]),
        cut("frame 1 of video 0", (2, 2, 4), 2, 1),
    ),
    "a prompt truncated inside a second video's frame": (
        symbols("[I]t[II]t[I", videos=[(1, 2, 2), (3, 2, 4)]),
        cut("frame 1 of video 1", (3, 2, 4), 2, 1),
    ),
    "a row truncated inside an image, another row after it": (
        symbols("tt<III", "<IIII>", images=[(1, 4, 4), (1, 4, 4)]),
        cut("image 0", (1, 4, 4), 4, 3),
    ),
    "an image over the end of a row": (
        symbols("ttI", "Itt", images=[(1, 2, 4)]),
        cut("image 0", (1, 2, 4), 2, 1),
    ),
    "a video's frame over the end of a row": (
        symbols("t[I", "[I]", videos=[(1, 2, 4)]),
        cut("frame 0 of video 0", (1, 2, 4), 2, 1),
    ),
    "an image run too short, before another image": (
        symbols("<I>t<II>", images=[(1, 2, 4), (1, 2, 2)]),
        cut("image 0", (1, 2, 4), 2, 1),
    ),
    "an image token masked": (
        symbols("<III>t", images=[(1, 2, 6)], mask=["110111"]),
        cut("image 0", (1, 2, 6), 3, 2),
    ),
    # The grids describe more than the prompt holds.
    "a grid left over": (
        symbols("t<I>t", images=[(1, 2, 2), (1, 2, 4)]),
        left_over("image", 1, (1, 2, 4), 3, 1),
    ),
    "a grid left over, after zeros": (
        symbols("t<I>t", images=[(0, 0, 0), (1, 2, 2), (0, 0, 0), (1, 2, 4), (1, 2, 6)]),
        left_over("image", 3, (1, 2, 4), 6, 1),
    ),
    "a grid left over, as its image is masked": (
        symbols("t<II>", images=[(1, 2, 4)], mask=["11001"]),
        left_over("image", 0, (1, 2, 4), 2, 0),
    ),
    "grids of text": (
        symbols("ttt", images=[(1, 2, 4)], videos=[(1, 2, 2)]),
        left_over("image", 0, (1, 2, 4), 2, 0),
    ),
    "a video's grid left over": (
        symbols("t<I>t", images=[(1, 2, 2)], videos=[(0, 0, 0), (2, 2, 4)]),
        left_over("video", 1, (2, 2, 4), 4, 0),
    ),
    "a second video's grid left over": (
        symbols("t[I]t", videos=[(1, 2, 2), (2, 2, 4)]),
        left_over("video", 1, (2, 2, 4), 5, 1),
    ),
    "frames left over": (
        symbols("[II]t[II]", videos=[(3, 2, 4)]),
        left_over("video", 0, (3, 2, 4), 6, 4, " after 2 of its frames"),
    ),
    "tall frames left over": (
        symbols("[IIII]", videos=[(3, 4, 4)]),
        left_over("video", 0, (3, 4, 4), 12, 4, " after 1 of its frames"),
    ),
    "frames of a second video left over": (
        symbols("[I]t[II]", videos=[(1, 2, 2), (5, 2, 4)]),
        left_over("video", 1, (5, 2, 4), 11, 3, " after 1 of its frames"),
    ),
    "a grid of nearly too many tokens left over": (
        symbols("ttt", images=[(2**30 - 1, 2, 2)]),
        left_over("image", 0, (2**30 - 1, 2, 2), 2**30 - 1, 0),
    ),
}


def below(rows, arguments):
    """Put rows of text above the batch, the first of them masked."""
    input_ids, mask = arguments["input_ids"], arguments["attention_mask"]
    text = torch.zeros(rows, input_ids.shape[1], dtype=torch.int64)
    mask = torch.cat((torch.ones_like(text), torch.ones_like(input_ids) if mask is None else mask))
    mask[0] = 0
    return {**arguments, "input_ids": torch.cat((text, input_ids)), "attention_mask": mask}


def layouts():
    return [
        pytest.param(arguments, message, id=name) for name, (arguments, message) in LAYOUTS.items()
    ]


@FORMS
@pytest.mark.parametrize("rows_above", [0, 2])
@pytest.mark.parametrize(("arguments", "message"), layouts())
def test_a_layout_is_refused(arguments, message, rows_above, form):
    if rows_above:
        arguments = below(rows_above, arguments)
    with pytest.raises(ValueError, match=exactly(message(rows_above))):
        get_rope_index(**arguments, **form)


@FORMS
@pytest.mark.parametrize(("arguments", "message"), layouts())
def test_a_layout_of_packed_input_is_refused(arguments, message, form):
    batch, seq_len = arguments["input_ids"].shape
    flat = {
        name: arguments[name].flatten()
        for name in ("input_ids", "attention_mask")
        if arguments[name] is not None
    }
    # An empty sequence comes first.
    bounds = torch.tensor([0, *range(0, batch * seq_len + 1, seq_len)])
    with pytest.raises(ValueError, match=exactly(message(1))):
        get_rope_index(**{**arguments, **flat}, cu_seqlens=bounds, **form)


@FORMS
def test_a_layout_by_types_is_refused(form):
    types = torch.tensor([[0, 1, 1, 0], [0, 2, 2, 2]])
    arguments = {
        "image_grid_thw": GRID,
        "video_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": types,
    }
    with pytest.raises(ValueError, match=exactly(cut("frame 0 of video 0", (1, 4, 4), 4, 3)(1))):
        get_rope_index(torch.zeros_like(types), SGLANG, **arguments, **form)


@pytest.mark.parametrize(
    ("entries", "rows", "arguments"),
    [
        pytest.param(2, ["tttt", "tttt"], {}, id="two rows"),
        pytest.param(3, ["t<I>t<I>"], {"image_grid_thw": [(1, 2, 2)] * 2}, id="two images"),
        pytest.param(2, ["tttt"], {"mask": ["0110"]}, id="padding"),
    ],
)
def test_max_groups_must_suffice(entries, rows, arguments):
    prompt = Prompt.from_symbols(SGLANG, rows, **arguments)
    arguments = {**prompt.arguments(), "spec": SGLANG}
    plan = plan_rope_index(**arguments, max_groups=entries)
    assert torch.equal(plan.position_ids(), prompt.expected()[0])
    message = f"max_groups must be at least {entries} for this input, got {entries - 1}"
    with pytest.raises(ValueError, match=exactly(message)):
        plan_rope_index(**arguments, max_groups=entries - 1)


def refusal(prompt, **options):
    try:
        rope_index(prompt, **options)
    except ValueError as error:
        return str(error)
    return None


@given(token_soup(SGLANG, fit=False, touching=True, zero_grids=True))
def test_both_forms_refuse_what_the_reference_does_in_the_same_words(prompt):
    try:
        prompt.expected()
        refused = False
    except Refusal:
        refused = True
    message = refusal(prompt)
    assert (message is not None) == refused
    assert refusal(prompt, form="static") == message


# What is no fault

TOUCHING = Prompt.from_symbols(
    SGLANG,
    ["ttt<IIII>t[I]t[I]", "tt<IIIIII>tttt[I]", "ttttttttttttttttt"],
    mask=["11111111111111111", "00111111111111111", "11111110000000000"],
    image_grid_thw=[[1, 4, 4], [1, 2, 4], [1, 4, 4]],
    video_grid_thw=[[3, 2, 2]],
)
APART = Prompt.from_symbols(
    SGLANG,
    ["ttt<IIII>t[I]t[I]", "tt<II>t<IIII>t[I]", "ttttttttttttttttt"],
    mask=["11111111111111111", "00111111111111111", "11111110000000000"],
    image_grid_thw=[[1, 4, 4], [1, 2, 4], [1, 4, 4]],
    video_grid_thw=[[3, 2, 2]],
)


def with_zeros(grids, at):
    return torch.cat((grids[:at], torch.zeros(2, 3, dtype=torch.int64), grids[at:]))


@FORMS
@pytest.mark.parametrize("prompt", [TOUCHING, APART], ids=["touching", "apart"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda _: {"validate": True}, id="nothing changed"),
        pytest.param(lambda _: {"mm_token_type_ids": None}, id="no types"),
        *(
            pytest.param(
                lambda p, v=value: {
                    "mm_token_type_ids": p.mm_token_type_ids.where(p.attention_mask == 1, v)
                },
                id=f"types of {value} at masked tokens",
            )
            for value in (-100, 1, 258)
        ),
        *(
            pytest.param(
                lambda p, d=dtype: {"attention_mask": p.attention_mask.to(d)}, id=f"mask of {dtype}"
            )
            for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)
        ),
        *(
            pytest.param(
                lambda p, n=name, d=dtype: {n: getattr(p, n).to(d)}, id=f"{name} of {dtype}"
            )
            for name in ("image_grid_thw", "video_grid_thw", "mm_token_type_ids")
            for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32)
        ),
        *(
            pytest.param(
                lambda p, n=name, a=at: {n: with_zeros(getattr(p, n), a)},
                id=f"{name} with zeros {where}",
            )
            for name, places in (
                ("image_grid_thw", {"first": 0, "between": 2, "last": 3}),
                ("video_grid_thw", {"first": 0, "last": 1}),
            )
            for where, at in places.items()
        ),
    ],
)
def test_is_answered(prompt, change, form):
    assert_answers(prompt, **change(prompt), **form)


@FORMS
@pytest.mark.parametrize(
    "grids",
    [None, torch.empty(0, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)],
    ids=["absent", "empty", "zeros"],
)
@pytest.mark.parametrize("rows", [["tttt", "[]>t"], ["", ""]], ids=["text", "no token"])
def test_text_needs_no_grid(rows, grids, form):
    prompt = Prompt.from_symbols(SGLANG, rows)
    assert_answers(prompt, image_grid_thw=grids, video_grid_thw=grids, **form)


@FORMS
@pytest.mark.parametrize("name", ["attention_mask", "mm_token_type_ids"])
@pytest.mark.parametrize(
    "strided",
    [
        pytest.param(lambda values: values[:1, :4].T, id="one column, transposed"),
        pytest.param(lambda values: values[::2, ::2][:1, :1], id="one token of every other"),
        pytest.param(lambda values: values[:, ::2], id="every other column"),
        pytest.param(lambda values: values[:1].expand(4, -1), id="expanded"),
    ],
)
def test_values_of_any_strides_are_answered(strided, name, form):
    fill = torch.ones if name == "attention_mask" else torch.zeros
    values = strided(fill((5, 6), dtype=torch.int64))
    prompt = Prompt.from_symbols(SGLANG, ["t" * values.shape[1]] * values.shape[0])
    assert_answers(prompt, **{name: values}, **form)


def test_without_tokens_grids_are_left_over_only_where_that_is_asked():
    """Refused above, but not where a caller lets grids be left over, nor where nothing is read."""
    ids, grids = torch.zeros((2, 0), dtype=torch.int64), torch.tensor([[1, 4, 4]])
    compiled = torch.compile(get_rope_index, backend="eager", fullgraph=True)
    for position_ids, rope_deltas in (
        rope_index_of(Inputs(ids, image_grid_thw=grids, lenient=True), SGLANG),
        compiled(ids, SGLANG, image_grid_thw=grids),
    ):
        assert position_ids.shape == (3, 2, 0)
        assert rope_deltas.tolist() == [[0], [0]]


def test_a_size_below_zero_does_not_disorder_the_table():
    """Unchecked, or not yet: searches among what does not ascend would write anywhere."""
    grids = torch.tensor([[1, 4, 4], [1, -2, 4], [-3, 4, 4], [2, 2, 2]])
    items = make_items(grids, grids, SGLANG, torch.int64)
    assert items.ends.tolist() == [4, 4, 4, 6, 10, 10, 10, 12]


def test_a_pace_does_not_depend_on_the_defaults():
    """Of images without time beside videos whose frames are counted, which no family has yet."""
    spec = MRopeSpec.for_model("ernie4_5_vl_moe", convention="transformers", image_time="none")
    grids = torch.tensor([[600, 2, 2]])
    want = make_items(grids[:0], grids, spec, torch.int64)
    assert want.extent.tolist() == [300, 1, 1]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # in which 299 is 300
    try:
        with torch.device("meta"):
            got = make_items(grids[:0], grids, spec, torch.int64)
    finally:
        torch.set_default_dtype(before)
    assert got.extent.tolist() == want.extent.tolist()
    assert torch.equal(got.pace, want.pace)


@pytest.mark.parametrize("spec", [SGLANG, TRANSFORMERS], ids=lambda spec: spec.convention)
def test_conversations_are_never_refused(spec):
    @given(conversations(spec, touching=True))
    def check(prompt):
        assert refusal(prompt) is None
        assert refusal(prompt, form="static") is None

    check()
