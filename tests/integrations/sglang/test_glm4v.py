"""SGLang's function for GLM-4V: signature, recorded answers, text, grids."""

import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Glm4vConfig, Glm4vMoeConfig, Glm46VConfig, GlmOcrConfig

from tests.integrations.sglang.glm4v_calls import (
    CONFIG,
    NO_GRID,
    SPEC,
    answer,
    assert_same,
    parameters,
    prompt_of,
    rope_index,
)
from vecrope import MRopeSpec, get_rope_index
from vecrope.integrations.sglang import get_rope_index_glm4v
from vecrope.testing import Prompt

GOLDEN_FILE = Path(__file__).parents[2] / "glm4v_golden.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text())["cases"]


def tensors(case, *names):
    return {name: None if case[name] is None else torch.tensor(case[name]) for name in names}


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
