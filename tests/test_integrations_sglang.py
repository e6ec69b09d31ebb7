import inspect
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import Glm4vConfig, Glm4vMoeConfig, Glm46VConfig, GlmOcrConfig

from bench.wheels import Wheel, load
from vecrope import MRopeSpec, get_rope_index
from vecrope.integrations.sglang import get_rope_index_glm4v
from vecrope.testing import Prompt, assert_matches, conversations, token_soup

GOLDEN = json.loads((Path(__file__).parent / "glm4v_golden.json").read_text())["cases"]
SPEC = MRopeSpec.for_model("glm4v", convention="sglang")
SOURCE = "sglang/srt/layers/rotary_embedding/mrope_rope_index.py"
NO_GRID = torch.empty((0, 3), dtype=torch.int64)


def config_of(spec):
    return SimpleNamespace(
        image_token_id=spec.image_token_id,
        video_start_token_id=spec.video_start_token_id,
        video_end_token_id=spec.video_end_token_id,
        vision_config=SimpleNamespace(spatial_merge_size=spec.spatial_merge_size),
    )


CONFIG = config_of(SPEC)


def rope_index(input_ids, *, image_grid_thw=None, video_grid_thw=None, attention_mask=None, **_):
    return get_rope_index_glm4v(input_ids, CONFIG, image_grid_thw, video_grid_thw, attention_mask)


def answer(prompt, function=rope_index):
    return function(**prompt.arguments())


def prompt_of(*rows, **arguments):
    return Prompt.from_symbols(SPEC, rows, **arguments)


def assert_same(got, expected):
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours.dtype, ours.device, ours.shape) == (theirs.dtype, theirs.device, theirs.shape)
        assert torch.equal(ours, theirs)


def tensors(case, *names):
    return {name: None if case[name] is None else torch.tensor(case[name]) for name in names}


# The function


def parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_the_signature_is_sglangs():
    empty, either = inspect.Parameter.empty, inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = ["input_ids", "hf_config", "image_grid_thw", "video_grid_thw", "attention_mask"]
    assert parameters(get_rope_index_glm4v) == [
        *((name, either, empty) for name in names),
        ("kwargs", inspect.Parameter.VAR_KEYWORD, empty),
    ]


def test_further_keywords_are_ignored():
    prompt = prompt_of("tIIt", image_grid_thw=[[1, 2, 4]])
    arguments = (prompt.input_ids, CONFIG, prompt.image_grid_thw, None, None)
    got = get_rope_index_glm4v(*arguments, second_per_grid_ts=3, model_type=None)
    assert_same(got, prompt.expected())


def test_importing_it_loads_no_upstream():
    program = (
        "import sys, vecrope.integrations.sglang; "
        "print(*{'sglang', 'transformers', 'hypothesis'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")


@pytest.mark.parametrize("config_class", [Glm4vConfig, Glm4vMoeConfig, Glm46VConfig, GlmOcrConfig])
def test_ids_and_merge_size_are_the_configurations(config_class):
    config = config_class(vision_config={"spatial_merge_size": 3})
    spec = MRopeSpec.from_config(config, convention="sglang")
    prompt = Prompt.from_symbols(
        spec, ["t<II>[<I>t<I>]t"], image_grid_thw=[[1, 3, 6]], video_grid_thw=[[2, 3, 3]]
    )
    grids = prompt.image_grid_thw, prompt.video_grid_thw
    assert_same(get_rope_index_glm4v(prompt.input_ids, config, *grids, None), prompt.expected())


# SGLang's recorded answers

LEFT_OVER = {
    "left-over grid",
    "masked markers do not count",
    "stray end first",
    "two starts, one end",
}
RAISED = {"adjacent images", "truncated image", "missing grid"}
ANSWERED = [case for case in GOLDEN if case["name"] not in RAISED]


@pytest.mark.parametrize("nested_lists", [False, True], ids=["tensors", "nested lists"])
@pytest.mark.parametrize("case", ANSWERED, ids=lambda case: case["name"])
def test_recorded_answers(case, nested_lists):
    grids = {name: case[name] for name in ("image_grid_thw", "video_grid_thw")}
    if not nested_lists:
        grids = tensors(case, *grids)
    got = rope_index(**tensors(case, "input_ids", "attention_mask"), **grids)
    assert_same(got, tensors(case["sglang"], "position_ids", "rope_deltas").values())


def test_some_recorded_answers_are_not_the_librarys():
    names = ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw")
    refused, with_other_deltas = set(), set()
    for case in ANSWERED:
        try:
            _, rope_deltas = get_rope_index(spec=SPEC, **tensors(case, *names))
        except ValueError:
            refused.add(case["name"])
        else:
            if rope_deltas.tolist() != case["sglang"]["rope_deltas"]:
                with_other_deltas.add(case["name"])
    assert refused == LEFT_OVER
    assert with_other_deltas == {f"random {number}" for number in (2, 12, 26, 30, 32)}


def test_the_other_recorded_cases_are_sglangs_exceptions():
    assert {case["name"] for case in GOLDEN if "raises" in case["sglang"]} == RAISED


# Text only


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(2, 3), (1, 0), (0, 2)])
def test_without_grids_and_mask_positions_are_int64_and_deltas_of_the_ids_dtype(shape, dtype):
    input_ids = torch.full(shape, SPEC.image_token_id, dtype=dtype)
    positions = torch.arange(shape[1]).expand(3, *shape)
    assert_same(rope_index(input_ids), (positions, torch.zeros((shape[0], 1), dtype=dtype)))


MASKED_TEXT = [
    pytest.param([[1, 1, 1]], [[0, 1, 2]], [[0]], id="no padding"),
    pytest.param([[0, 0, 1, 1, 1]], [[1, 1, 0, 1, 2]], [[-2]], id="left padding"),
    pytest.param([[1, 0, 1, 1]], [[0, 1, 1, 2]], [[-1]], id="a hole"),
    pytest.param([[0, 0, 1]], [[1, 1, 0]], [[-1]], id="padding is the largest position"),
    pytest.param([[0, 0, 0]], [[1, 1, 1]], [[-1]], id="no token"),
    pytest.param([[1, 1], [0, 1]], [[0, 1], [1, 0]], [[0], [0]], id="rows"),
    pytest.param([[3, 1, 0, -1]], [[2, 3, 1, 2]], [[0]], id="values are counted"),
    pytest.param([[], []], [[], []], [[0], [0]], id="rows of no width"),
    pytest.param([], [], [], id="no row"),
]


@pytest.mark.parametrize("with_ids", [True, False], ids=["ids", "no ids"])
@pytest.mark.parametrize(("mask", "positions", "deltas"), MASKED_TEXT)
def test_without_grids_the_mask_alone_decides(mask, positions, deltas, with_ids):
    mask = torch.tensor(mask, dtype=torch.int64).view(len(mask), -1 if sum(map(len, mask)) else 0)
    expected = (
        torch.tensor(positions, dtype=torch.int64).view(mask.shape).expand(3, -1, -1),
        torch.tensor(deltas, dtype=torch.int64).view(-1, 1),
    )
    input_ids = torch.full_like(mask, SPEC.image_token_id).int() if with_ids else None
    assert_same(rope_index(input_ids, attention_mask=mask), expected)
    assert_same(rope_index(input_ids, attention_mask=mask.to(torch.float32)), expected)
    if mask.numel() and 0 <= mask.min() <= mask.max() <= 1:
        assert_same(rope_index(input_ids, attention_mask=mask.bool()), expected)


def test_without_grids_answers_lie_where_the_mask_or_else_the_ids_do():
    here, there = torch.zeros((1, 3), dtype=torch.int64), torch.ones((1, 3), device="meta")
    for input_ids, mask in ((here, there), (there.long(), None)):
        position_ids, rope_deltas = rope_index(input_ids, attention_mask=mask)
        assert (position_ids.device, rope_deltas.device) == (there.device, there.device)


# With grids


@pytest.mark.parametrize(
    ("rows", "given_grids", "used_grids"),
    [
        pytest.param(["tIt"], ([[1, 2, 2], [2, 4, 4]], None), ([[1, 2, 2]], None), id="an image"),
        pytest.param(
            ["[I]tt", "[II]I"],
            ([[1, 2, 2], [1, 2, 2]], [[1, 2, 2], [3, 4, 2], [3, 2, 2]]),
            ([[1, 2, 2]], [[1, 2, 2], [1, 4, 2]]),
            id="an image, frames of the last video, and a video",
        ),
        pytest.param(["ttt"], ([[1, 2, 2]], [[2, 2, 2]]), ([], []), id="all"),
        pytest.param([""], ([[1, 2, 2]], [[2, 2, 2]]), ([], []), id="all, and there is no token"),
        pytest.param(
            ["I[I]"],
            ([[1, 2, 2], [-1, 0, 3]], [[1, 2, 2], [0, 2, 2]]),
            ([[1, 2, 2]], [[1, 2, 2]]),
            id="ill-formed ones",
        ),
        pytest.param(
            ["III[I]"],
            ([[1, 3, 7], [2, 3, 5]], [[2, 3, 3]]),
            ([[1, 2, 6]], [[1, 2, 2]]),
            id="sides are rounded down to what the merge size divides",
        ),
    ],
)
def test_what_sglang_does_not_mind(rows, given_grids, used_grids):
    names = ("image_grid_thw", "video_grid_thw")
    prompt = prompt_of(*rows, **dict(zip(names, given_grids, strict=True)))
    expected = prompt_of(*rows, **dict(zip(names, used_grids, strict=True))).expected()
    with pytest.raises(ValueError, match=r"left over|must|hold none"):
        get_rope_index(
            prompt.input_ids,
            SPEC,
            image_grid_thw=prompt.image_grid_thw,
            video_grid_thw=prompt.video_grid_thw,
        )
    copies = [None if grids is None else grids.clone() for grids in prompt.arguments().values()]
    assert_same(answer(prompt), expected)
    for copy, argument in zip(copies, prompt.arguments().values(), strict=True):
        assert copy is argument or torch.equal(copy, argument)


@pytest.mark.parametrize("empty", [[], torch.empty(0), NO_GRID], ids=["list", "tensor", "(0, 3)"])
def test_an_empty_grid_is_a_grid(empty):
    prompt = prompt_of("tt", mask=["01"])
    assert_same(answer(replace(prompt, image_grid_thw=empty)), prompt.expected())
    assert rope_index(prompt.input_ids, attention_mask=prompt.attention_mask)[1].item() == 0
    assert prompt.expected()[1].item() == -1


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param([[False, True, True, True]], id="bool"),
        pytest.param([[0.0, 1.0, 1.0, 1.0]], id="floating-point"),
        pytest.param([[2, 1, 1, 1]], id="2 is no token"),
        pytest.param([[-1, 1, 1, 1]], id="-1 is no token"),
    ],
)
def test_with_grids_a_token_is_where_the_mask_is_one(mask):
    prompt = prompt_of("IIIt", mask=["0111"], image_grid_thw=[[1, 2, 4]])
    got = answer(replace(prompt, attention_mask=torch.tensor(mask)))
    assert_same(got, prompt.expected())


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param(prompt_of("tIIIt", image_grid_thw=[[1, 2, 2], [1, 2, 4]]), id="touching"),
        pytest.param(prompt_of("II", image_grid_thw=[[1, 2, 2]] * 2), id="touching, nothing else"),
        pytest.param(
            prompt_of("I", "t", mask=["1", "0"], image_grid_thw=[[1, 2, 2]]), id="no token"
        ),
        pytest.param(prompt_of("I", image_grid_thw=[[0, 0, 0], [1, 2, 2]]), id="a grid of zeros"),
        pytest.param(prompt_of("", "", image_grid_thw=[]), id="T = 0"),
    ],
)
def test_answers_where_sglang_has_none(prompt):
    assert_same(answer(prompt), prompt.expected())


def test_int32_ids_give_int32_positions():
    prompt = prompt_of("tI", image_grid_thw=[[1, 2, 2]])
    position_ids, rope_deltas = prompt.expected()
    got = answer(replace(prompt, input_ids=prompt.input_ids.int()))
    assert_same(got, (position_ids.int(), rope_deltas))


# Errors

IMAGE = prompt_of("tIIt", image_grid_thw=[[1, 2, 4]])


@pytest.mark.parametrize(
    ("error", "message", "prompt"),
    [
        pytest.param(
            ValueError,
            r"row 0, image 0: its grid \(1, 4, 4\) needs 4 tokens, got 2 .* truncated",
            prompt_of("tII", image_grid_thw=[[1, 4, 4], [1, 4, 4]]),
            id="a truncated image, and one left over",
        ),
        pytest.param(
            ValueError,
            r"row 1, frame 1 of video 0: its grid \(3, 2, 4\) needs 2 tokens, got 1 .* truncated",
            prompt_of("[II", "[I]", video_grid_thw=[[3, 2, 4]]),
            id="a truncated frame, and one left over",
        ),
        pytest.param(
            ValueError,
            "row 0 holds image tokens beyond the last grid",
            prompt_of("ItI", image_grid_thw=[[1, 2, 2]]),
            id="a missing grid",
        ),
        pytest.param(
            ValueError,
            "row 0, image 0: .* needs 2 tokens, got 1",
            prompt_of("ItIII", image_grid_thw=[[1, 2, 4], [1, 2, 4]]),
            id="runs that fit their grids in sum only",
        ),
        pytest.param(
            ValueError,
            "image_grid_thw row 0 must be positive",
            prompt_of("I", image_grid_thw=[[0, 2, 2]]),
            id="an ill-formed grid",
        ),
        pytest.param(
            ValueError,
            r"image_grid_thw row 0 must have .* divisible by spatial_merge_size 2, got \(1, 1, 2\)",
            prompt_of("I", "t", image_grid_thw=[[1, 1, 2], [1, 2, 2]]),
            id="a grid smaller than a token",
        ),
        pytest.param(
            ValueError,
            r"image_grid_thw must be .* nested lists, got \[\[1, 2, 4\], \[1\]\]",
            replace(IMAGE, image_grid_thw=[[1, 2, 4], [1]]),
            id="ragged grids",
        ),
        pytest.param(
            ValueError,
            r"video_grid_thw must have shape \(num_videos, 3\), got \(3,\)",
            replace(IMAGE, video_grid_thw=[1, 2, 4]),
            id="one grid, not in a list",
        ),
        pytest.param(
            TypeError,
            "image_grid_thw must be of a signed integer dtype, uint8 or bool",
            replace(IMAGE, image_grid_thw=[[1.0, 2.0, 4.0]]),
            id="floating-point grids",
        ),
        pytest.param(
            ValueError,
            r"attention_mask must have the shape of input_ids \(1, 4\), got \(1, 3\)",
            replace(IMAGE, attention_mask=torch.ones(1, 3)),
            id="a mask of another shape",
        ),
        pytest.param(
            TypeError,
            "attention_mask must be a tensor, got list",
            replace(IMAGE, attention_mask=[[1, 1, 1, 1]]),
            id="a mask that is a list",
        ),
        pytest.param(
            TypeError,
            "input_ids must be int64 or int32",
            replace(IMAGE, input_ids=torch.ones(1, 4)),
            id="floating-point ids",
        ),
        pytest.param(
            ValueError,
            r"attention_mask must have the shape of input_ids \(1, 2\), got \(1, 3\)",
            replace(prompt_of("tt"), attention_mask=torch.ones(1, 3)),
            id="text only, a mask of another shape",
        ),
        pytest.param(
            ValueError,
            r"attention_mask must have shape \(B, T\), got \(2,\)",
            replace(prompt_of("tt"), attention_mask=torch.ones(2)),
            id="text only, a mask without rows",
        ),
        pytest.param(
            ValueError,
            r"input_ids must have shape \(B, T\), got \(2,\)",
            replace(prompt_of("tt"), input_ids=torch.ones(2)),
            id="text only, ids without rows",
        ),
        pytest.param(
            TypeError,
            "input_ids must be a tensor, got list",
            replace(prompt_of("tt"), input_ids=[[1, 2]]),
            id="text only, ids that are a list",
        ),
        pytest.param(
            TypeError,
            "input_ids must be a tensor where attention_mask is None, got NoneType",
            replace(IMAGE, input_ids=None),
            id="neither ids nor mask",
        ),
    ],
)
def test_errors(error, message, prompt):
    with pytest.raises(error, match=message):
        answer(prompt)


@pytest.mark.parametrize(
    ("error", "message", "fields"),
    [
        (AttributeError, "video_end_token_id", {"image_token_id": 1, "video_start_token_id": 2}),
        (
            ValueError,
            "image_token_id must be given .* got None",
            {**vars(CONFIG), "image_token_id": None},
        ),
    ],
    ids=["a missing field", "a field that is not set"],
)
def test_errors_in_the_configuration(error, message, fields):
    config = SimpleNamespace(**fields)
    with pytest.raises(error, match=message):
        get_rope_index_glm4v(IMAGE.input_ids, config, IMAGE.image_grid_thw, None, None)


# Any prompt


def with_grids(prompt):
    """Return the prompt with empty grids where it has none: all tokens must not be text."""
    if prompt.image_grid_thw is None and prompt.video_grid_thw is None:
        return replace(prompt, image_grid_thw=NO_GRID)
    return prompt


def is_sound(t, h, w):
    return t >= 1 and min(h, w) >= SPEC.spatial_merge_size


def as_sglang_reads(prompt):
    """Round the sides of the grids down, and drop an ill-formed grid with all behind it."""
    grids = {}
    for name in ("image_grid_thw", "video_grid_thw"):
        if getattr(prompt, name) is not None:
            rows = getattr(prompt, name).tolist()
            sound = itertools.takewhile(lambda row: row == [0] * 3 or is_sound(*row), rows)
            read = [[t, h - h % 2, w - w % 2] for t, h, w in sound]
            grids[name] = torch.tensor(read, dtype=torch.int64).view(-1, 3)
    return replace(prompt, **grids)


@given(
    conversations(SPEC)
    | conversations(SPEC, touching=True)
    | token_soup(SPEC, zero_grids=True)
    | token_soup(SPEC, touching=True, fit=False, zero_grids=True)
)
def test_answers_and_refusals_are_those_of_the_loop(prompt):
    prompt = with_grids(prompt)
    as_read = as_sglang_reads(prompt)

    def function(**_):
        return answer(prompt)

    assert_matches(function, as_read, allow_left_over=True)


# SGLang itself


@pytest.fixture(scope="module")
def sglang():
    path = os.environ.get("VECROPE_SGLANG_WHEEL")
    if not path:
        pytest.skip("VECROPE_SGLANG_WHEEL must be the path of a wheel of SGLang 0.5.23")
    wheel = Wheel(Path(path), "sglang")
    assert wheel.version == "0.5.23"
    name = "get_rope_index_glm4v"
    function = load(wheel, SOURCE, name, torch=torch, itertools=itertools)[name]
    return SimpleNamespace(
        function=function,
        rope_index=lambda input_ids, *, image_grid_thw, video_grid_thw, attention_mask, **_: (
            function(input_ids, CONFIG, image_grid_thw, video_grid_thw, attention_mask)
        ),
    )


def test_the_signature_is_the_wheels(sglang):
    assert parameters(get_rope_index_glm4v) == parameters(sglang.function)


MASKS = {
    "as it is": lambda mask: mask,
    "bool": torch.Tensor.bool,
    "floating-point": torch.Tensor.float,
    "2 where 0": lambda mask: mask + 2 * (mask == 0),
}


@st.composite
def disguised(draw, prompts):
    """Draw a prompt with a mask of any dtype, grids as tensors or lists, or no grids at all."""
    prompt = draw(prompts)
    if prompt.attention_mask is not None:
        disguise = MASKS[draw(st.sampled_from(sorted(MASKS)))]
        prompt = replace(prompt, attention_mask=disguise(prompt.attention_mask))
    grids = {"image_grid_thw": prompt.image_grid_thw, "video_grid_thw": prompt.video_grid_thw}
    given_as = draw(st.sampled_from(["tensors", "lists", "none"]))
    if given_as != "tensors":
        lists = given_as == "lists"
        grids = {k: v.tolist() if lists and v is not None else None for k, v in grids.items()}
    return replace(prompt, **grids)


@given(data=st.data())
def test_conversations_get_the_wheels_answer(sglang, data):
    prompt = data.draw(disguised(conversations(SPEC)))
    assert_same(answer(prompt), answer(prompt, sglang.rope_index))


def has_text_in_every_row(prompt):
    text = prompt.input_ids != SPEC.image_token_id
    if prompt.attention_mask is not None:
        text &= prompt.attention_mask == 1
    return bool(text.any(1).all())


def has_a_grid_of_zeros(prompt):
    grids = (prompt.image_grid_thw, prompt.video_grid_thw)
    return any(not any(row) for rows in grids if rows is not None for row in rows)


@given(data=st.data())
@pytest.mark.parametrize("fit", [True, False], ids=["grids that fit", "any grids"])
def test_token_soup_gets_the_wheels_answer_if_it_gets_two(sglang, fit, data):
    prompt = data.draw(disguised(token_soup(SPEC, fit=fit)))
    # Without text the positions of a row may be a single one, which SGLang spreads over all tokens.
    assume(has_text_in_every_row(prompt) and not has_a_grid_of_zeros(prompt))
    try:
        expected = answer(prompt, sglang.rope_index)
    except Exception:
        assert not fit
        return
    try:
        got = answer(prompt)
    except ValueError:
        assert not fit  # the loop says whether to refuse
        return
    assert_same(got, expected)


# A GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("left_over", [False, True], ids=["", "a grid left over"])
def test_with_grids_answers_lie_where_the_ids_do(left_over):
    grids = [[1, 2, 4]] + [[1, 2, 2]] * left_over
    prompt = prompt_of("tIIt", "ttII", mask=["1111", "0111"], image_grid_thw=[[1, 2, 4], *grids])
    expected = prompt.expected(allow_left_over=True)
    got = answer(replace(prompt, input_ids=prompt.input_ids.cuda()))
    assert_same(got, [tensor.cuda() for tensor in expected])
