import re

import pytest
import torch
from hypothesis import given

from tests.checks.calls import FORMS, GRID, SGLANG, exactly, refusal, symbols
from vecrope import get_rope_index, plan_rope_index
from vecrope.testing import Prompt, Refusal, token_soup

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
        f"expected {expected} for the {grids} rows of {kind}_grid_thw, got {got} in all"
    )


def left_over(kind, item, grid, expected, got, after=""):
    return lambda _: (
        f"{kind}_grid_thw row {item} {grid} is left over{after}: "
        f"expected {expected} {kind} tokens in all, got {got}"
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


def fault(message):
    """Match the message, with or without the likely mistake behind it."""
    return rf"^{re.escape(message)}( \((\w+_grid_thw|no|image_token_id|video_token_id) [^()]+\))?$"


@FORMS
@pytest.mark.parametrize("rows_above", [0, 2])
@pytest.mark.parametrize(("arguments", "message"), layouts())
def test_a_layout_is_refused(arguments, message, rows_above, form):
    if rows_above:
        arguments = below(rows_above, arguments)
    with pytest.raises(ValueError, match=fault(message(rows_above))):
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
    with pytest.raises(ValueError, match=fault(message(1))):
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
