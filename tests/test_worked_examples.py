"""Small prompts with the positions that the upstreams' functions give, in plain lists.

Every number was taken from a run of the named functions: of transformers 5.23, SGLang 0.5.23 and
vLLM 0.33. Where the installed transformers has the function it is run here again.
"""

import pytest
import torch
from oracles import (
    CORE,
    EVERYWHERE,
    FRAMES_BY_STAMPS,
    GLM,
    QWEN2,
    build,
    families_of,
    pairs,
    sglang_rope_index,
    spec_of,
    transformers_rope_index,
    vllm_rope_index,
)
from own_support import needs_sglang, needs_vllm
from support import rope_index

FORMS = {"exact": {}, "static": {"form": "static"}}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)

RATE_2 = {"tokens_per_second": 2}


def lines(numbers):
    return [[int(number) for number in line.split()] for line in numbers.split("/")]


def answered(name, families, rows, delta, t, h=None, w=None, **arguments):
    """Rows, and for each axis their positions, `/` between rows; an axis not given is as `t`."""
    rows = rows if isinstance(rows, list) else [rows]
    deltas = delta if isinstance(delta, list) else [delta]
    expected = [lines(axis or t) for axis in (t, h, w)], [[value] for value in deltas]
    return [
        pytest.param(family, rows, arguments, expected, id=f"{name}-{'-'.join(family)}")
        for family in families
        if family in CORE
    ]


SOURCES = [
    # transformers qwen2_vl, qwen2_5_vl, glm4v, ernie4_5_vl_moe: an image of two frames
    *answered(
        "image of two frames, by height and width",
        pairs((*QWEN2, "paddleocr_vl", *GLM, *FRAMES_BY_STAMPS, "ernie4_5_vl_moe"), "transformers"),
        "t<II>t",
        -1,
        "0 1 2 3 3 4",
        "0 1 2 2 3 4",
        "0 1 2 2 3 4",
        image_grid_thw=[[2, 2, 2]],
    ),
    # SGLang get_rope_index, get_rope_index_glm4v, get_rope_index_ernie45; vLLM ernie45_vl
    *answered(
        "image of two frames, by its largest side",
        [
            *pairs(("qwen2_vl", *GLM, *FRAMES_BY_STAMPS, "ernie4_5_vl_moe"), "sglang"),
            *pairs(("ernie4_5_vl_moe", "keye", "keye_vl1_5"), "vllm"),
        ],
        "t<II>t",
        0,
        "0 1 2 3 4 5",
        "0 1 2 2 4 5",
        "0 1 2 2 4 5",
        image_grid_thw=[[2, 2, 2]],
    ),
    # SGLang get_rope_index with model_type qwen2_5_vl, paddleocr_vl
    *answered(
        "image of two frames without time",
        pairs(("qwen2_5_vl", "paddleocr_vl"), "sglang"),
        "t<II>t",
        -1,
        "0 1 2 2 3 4",
        image_grid_thw=[[2, 2, 2]],
    ),
    # transformers qwen2_vl; SGLang and vLLM qwen2_vl
    *answered(
        "a clip longer than high",
        pairs("qwen2_vl", "transformers"),
        "t<VVVV>t",
        -2,
        "0 1 2 3 4 5 3 4",
        "0 1 2 2 2 2 3 4",
        "0 1 2 2 2 2 3 4",
        video_grid_thw=[[4, 2, 2]],
    ),
    *answered(
        "a clip longer than high",
        pairs("qwen2_vl", "sglang", "vllm"),
        "t<VVVV>t",
        0,
        "0 1 2 3 4 5 6 7",
        "0 1 2 2 2 2 6 7",
        "0 1 2 2 2 2 6 7",
        video_grid_thw=[[4, 2, 2]],
    ),
    *answered(
        "a prompt that ends in a clip",
        pairs("qwen2_vl", "transformers"),
        "tVVVV",
        0,
        "0 1 2 3 4",
        "0 1 1 1 1",
        "0 1 1 1 1",
        video_grid_thw=[[4, 2, 2]],
    ),
    # transformers, SGLang and vLLM qwen2_5_vl, two positions a second
    *answered(
        "a clip of a second a step",
        pairs("qwen2_5_vl", "transformers"),
        "t<VVV>t",
        0,
        "0 1 2 4 6 3 4",
        "0 1 2 2 2 3 4",
        "0 1 2 2 2 3 4",
        fields=RATE_2,
        video_grid_thw=[[3, 2, 2]],
        second_per_grid_ts=torch.tensor([1.0]),
    ),
    *answered(
        "a clip of a second a step",
        pairs("qwen2_5_vl", "sglang", "vllm"),
        "t<VVV>t",
        2,
        "0 1 2 4 6 7 8",
        "0 1 2 2 2 7 8",
        "0 1 2 2 2 7 8",
        fields=RATE_2,
        video_grid_thw=[[3, 2, 2]],
        second_per_grid_ts=torch.tensor([1.0]),
    ),
    # transformers, SGLang and vLLM paddleocr_vl
    *answered(
        "a clip of paddleocr",
        pairs("paddleocr_vl", "transformers"),
        "t<VVt",
        -1,
        "0 1 2 3 3",
        "0 1 2 2 3",
        "0 1 2 2 3",
        video_grid_thw=[[2, 2, 2]],
    ),
    *answered(
        "a clip of paddleocr",
        pairs("paddleocr_vl", "sglang", "vllm"),
        "t<VVt",
        1,
        "0 1 2 4 5",
        "0 1 2 2 5",
        "0 1 2 2 5",
        fields=RATE_2,
        video_grid_thw=[[2, 2, 2]],
    ),
    # transformers, SGLang and vLLM ernie4_5_vl_moe: 4 and 5 frames, merged in pairs
    *(
        case
        for frames in (4, 5)
        for case in (
            *answered(
                f"a clip of {frames} merged frames",
                pairs("ernie4_5_vl_moe", "transformers"),
                "t[VV]t",
                -1,
                "0 1 2 3 3 4",
                "0 1 2 2 3 4",
                "0 1 2 2 3 4",
                video_grid_thw=[[frames, 2, 2]],
            ),
            *answered(
                f"a clip of {frames} merged frames",
                pairs("ernie4_5_vl_moe", "sglang", "vllm"),
                "t[VV]t",
                0,
                "0 1 2 3 4 5",
                "0 1 2 2 4 5",
                "0 1 2 2 4 5",
                video_grid_thw=[[frames, 2, 2]],
            ),
        )
    ),
    # the same in transformers, SGLang and vLLM
    *answered(
        "frames behind their timestamps",
        [
            *pairs(FRAMES_BY_STAMPS, *EVERYWHERE),
            *pairs("cohere_compass", "transformers"),
            *pairs("keye_vl1_5", "vllm"),
        ],
        "t<VV>t<VV>",
        0,
        "0 1 2 2 4 5 6 7 7 9",
        "0 1 2 2 4 5 6 7 7 9",
        "0 1 2 3 4 5 6 7 8 9",
        video_grid_thw=[[2, 2, 4]],
    ),
    *answered(
        "frames before their timestamps",
        pairs(GLM, *EVERYWHERE),
        "[<VV>t<VV>t]",
        0,
        "0 1 2 2 4 5 6 7 7 9 10 11",
        "0 1 2 2 4 5 6 7 7 9 10 11",
        "0 1 2 3 4 5 6 7 8 9 10 11",
        video_grid_thw=[[2, 2, 4]],
    ),
    # transformers and SGLang glm4v: the frames of a clip in two rows
    *answered(
        "a clip over two rows",
        pairs(GLM, *EVERYWHERE),
        ["[VV]t", "[VV]t", "[V]tt"],
        [0, 0, 0],
        "0 1 1 3 4/0 1 1 3 4/0 1 2 3 4",
        "0 1 1 3 4/0 1 1 3 4/0 1 2 3 4",
        "0 1 2 3 4/0 1 2 3 4/0 1 2 3 4",
        video_grid_thw=[[2, 2, 4], [1, 2, 2]],
    ),
    # vLLM keye
    *answered(
        "frames without anything between them",
        pairs("keye", "vllm"),
        "tVVVVt",
        0,
        "0 1 1 3 3 5",
        "0 1 1 3 3 5",
        "0 1 2 3 4 5",
        video_grid_thw=[[2, 2, 4]],
    ),
    # vLLM openpangu_vl: two tokens between frames
    *answered(
        "frames with two separators between them",
        pairs("openpangu_vl", "vllm"),
        "ttVVttVVttVVtt",
        0,
        "0 1 2 2 4 5 6 6 8 9 10 10 12 13",
        "0 1 2 2 4 5 6 6 8 9 10 10 12 13",
        "0 1 2 3 4 5 6 7 8 9 10 11 12 13",
        video_grid_thw=[[3, 2, 4]],
    ),
    # transformers glm4v, ernie4_5_vl_moe
    *answered(
        "left padding, 0 at masked tokens",
        pairs((*QWEN2, *GLM, *FRAMES_BY_STAMPS, "ernie4_5_vl_moe"), "transformers", "vllm"),
        "ttt<II>",
        0,
        "0 0 0 1 2 2 4",
        "0 0 0 1 2 2 4",
        "0 0 0 1 2 3 4",
        mask=["0011111"],
        image_grid_thw=[[1, 2, 4]],
    ),
    # SGLang get_rope_index_glm4v
    *answered(
        "left padding, 1 at masked tokens",
        pairs(GLM, "sglang"),
        "ttt<II>",
        -2,
        "1 1 0 1 2 2 4",
        "1 1 0 1 2 2 4",
        "1 1 0 1 2 3 4",
        mask=["0011111"],
        image_grid_thw=[[1, 2, 4]],
    ),
    # SGLang get_rope_index, get_rope_index_ernie45
    *answered(
        "left padding, numbered as text",
        pairs((*QWEN2, *FRAMES_BY_STAMPS, "ernie4_5_vl_moe"), "sglang"),
        "ttt<II>",
        0,
        "0 1 2 3 4 4 6",
        "0 1 2 3 4 4 6",
        "0 1 2 3 4 5 6",
        mask=["0011111"],
        image_grid_thw=[[1, 2, 4]],
    ),
    # transformers glm4v
    *answered(
        "a hole in text",
        pairs((*GLM, "qwen2_vl"), "transformers"),
        "ttt<II>t",
        0,
        "0 0 1 2 3 3 5 6",
        "0 0 1 2 3 3 5 6",
        "0 0 1 2 3 4 5 6",
        mask=["10111111"],
        image_grid_thw=[[1, 2, 4]],
    ),
    *answered(
        "a hole joins two placeholders",
        pairs((*GLM, "qwen2_vl"), "transformers"),
        "tItIt",
        0,
        "0 1 0 1 3",
        "0 1 0 1 3",
        "0 1 0 2 3",
        mask=["11011"],
        image_grid_thw=[[1, 2, 4]],
    ),
    # SGLang get_rope_index_glm4v
    *answered(
        "a hole joins two placeholders",
        pairs(GLM, "sglang"),
        "tItIt",
        -1,
        "0 1 1 1 3",
        "0 1 1 1 3",
        "0 1 1 2 3",
        mask=["11011"],
        image_grid_thw=[[1, 2, 4]],
    ),
    # transformers glm4v counts markers, SGLang looks at the last
    *answered(
        "an end too many",
        pairs(GLM, "transformers"),
        "]t[II]t",
        0,
        "0 1 2 3 3 5 6",
        "0 1 2 3 3 5 6",
        "0 1 2 3 4 5 6",
        image_grid_thw=[[1, 2, 4]],
    ),
    *answered(
        "an end too many",
        pairs(GLM, "sglang"),
        "]t[II]t",
        0,
        "0 1 2 3 3 5 6",
        "0 1 2 3 4 5 6",
        "0 1 2 3 3 5 6",
        video_grid_thw=[[1, 4, 2]],
    ),
    # vLLM glm4_1v, qwen2_vl; transformers and SGLang take one grid for both and fail
    *answered(
        "two images without anything between them",
        [
            *pairs((*QWEN2, *GLM, "qwen3_vl", "ernie4_5_vl_moe"), "transformers", "vllm"),
            *pairs((*GLM, "ernie4_5_vl_moe"), "sglang"),
        ],
        "tIIIt",
        0,
        "0 1 2 2 4",
        "0 1 2 2 4",
        "0 1 2 3 4",
        image_grid_thw=[[1, 2, 2], [1, 2, 4]],
    ),
    # transformers; SGLang numbers these two tokens as text, which is refused
    *answered(
        "an image without a marker",
        pairs((*QWEN2, "qwen3_vl"), "transformers", "vllm"),
        "tIIt",
        0,
        "0 1 1 3",
        "0 1 1 3",
        "0 1 2 3",
        image_grid_thw=[[1, 2, 4]],
    ),
    # transformers; SGLang reads the token after the last and fails
    *answered(
        "a row that ends in a vision start",
        pairs((*QWEN2, *FRAMES_BY_STAMPS), *EVERYWHERE),
        "<I><",
        0,
        "0 1 2 3",
        image_grid_thw=[[1, 2, 2]],
    ),
    # everywhere: counters run on across rows
    *answered(
        "images of two rows",
        CORE,
        ["t<II>t", "t<I>tt"],
        [0, 0],
        "0 1 2 2 4 5/0 1 2 3 4 5",
        "0 1 2 2 4 5/0 1 2 3 4 5",
        "0 1 2 3 4 5/0 1 2 3 4 5",
        image_grid_thw=[[1, 2, 4], [1, 2, 2]],
    ),
    # vLLM and SGLang qwen3_asr, vLLM minicpmv4_6
    *answered(
        "no M-RoPE at all",
        [*pairs("qwen3_asr", "sglang", "vllm"), *pairs("minicpmv4_6", "vllm")],
        "t<t>t",
        0,
        "0 1 2 3 4",
    ),
]
SOURCES = [
    case
    for case in SOURCES
    if not (
        case.id.startswith("images of two rows") and spec_of(*case.values[0]).image_token_id is None
    )
]


def as_tensors(expected):
    position_ids, rope_deltas = expected
    return torch.tensor(position_ids), torch.tensor(rope_deltas)


@each_form
@pytest.mark.parametrize(("family", "rows", "arguments", "expected"), SOURCES)
def test_answers(family, rows, arguments, expected, form):
    prompt = build(*family, rows, **arguments)
    for answer in (rope_index(prompt, **form), prompt.expected()):
        for got, want in zip(answer, as_tensors(expected), strict=True):
            assert got.tolist() == want.tolist()


def cases_of(convention):
    return pytest.mark.parametrize(
        ("family", "rows", "arguments", "expected"),
        [case for case in SOURCES if case.values[0][1] == convention],
    )


def assert_gives(function, family, rows, arguments, expected):
    prompt = build(*family, rows, **arguments)
    for got, want in zip(function(prompt), as_tensors(expected), strict=True):
        assert got.tolist() == want.tolist()


# A run that holds two images is what transformers and SGLang fail on.
TWO_IN_A_RUN = "two images without anything between them"


@cases_of("transformers")
def test_transformers_gives_these_answers(family, rows, arguments, expected, request):
    if TWO_IN_A_RUN in request.node.callspec.id:
        with pytest.raises(RuntimeError, match=r"shape mismatch|expanded size"):
            transformers_rope_index(build(*family, rows, **arguments))
        return
    assert_gives(transformers_rope_index, family, rows, arguments, expected)


@needs_sglang
@cases_of("sglang")
def test_sglang_gives_these_answers(family, rows, arguments, expected, request):
    if TWO_IN_A_RUN in request.node.callspec.id:
        with pytest.raises(RuntimeError, match=r"shape mismatch|expanded size"):
            sglang_rope_index(build(*family, rows, **arguments))
        return
    if "ends in a vision start" in request.node.callspec.id:
        with pytest.raises(IndexError):
            sglang_rope_index(build(*family, rows, **arguments))
        return
    if family != ("qwen3_asr", "sglang"):  # SGLang has no function of its own for it
        assert_gives(sglang_rope_index, family, rows, arguments, expected)


@needs_vllm
@cases_of("vllm")
def test_vllm_gives_these_answers(family, rows, arguments, expected, request):
    # A request of vLLM's is one row, and minicpmv4_6 and qwen3_asr have one line for it.
    whole = "a clip over two rows" not in request.node.callspec.id
    if whole and spec_of(*family).image_token_id is not None:
        assert_gives(vllm_rope_index, family, rows, arguments, expected)


# Seconds: transformers, SGLang and vLLM round differently


@each_form
@pytest.mark.parametrize(
    ("rate", "seconds", "frame", "transformers", "sglang", "vllm"),
    [
        (2, 2 / 0.3, 3, 40, 40, 39),
        (2, 0.08, 25, 4, 4, 3),
        (25, 2 / 0.3, 3, 499, 500, 499),
        (25, 0.08, 5, 10, 9, 9),
        (25, 0.08, 1, 2, 2, 1),
    ],
)
def test_offsets_of_seconds_in_float32(rate, seconds, frame, transformers, sglang, vllm, form):
    offsets = {"transformers": transformers, "sglang": sglang, "vllm": vllm}
    for convention, offset in offsets.items():
        prompt = build(
            "qwen2_5_vl",
            convention,
            [f"<{'V' * (frame + 1)}"],
            fields={"tokens_per_second": rate},
            video_grid_thw=[[frame + 1, 2, 2]],
            second_per_grid_ts=torch.tensor([seconds], dtype=torch.float32),
        )
        position_ids, _ = rope_index(prompt, **form)
        assert position_ids[:, 0, -1].tolist() == [1 + offset, 1, 1]
        if convention == "transformers":
            assert transformers_rope_index(prompt)[0][0, 0, -1] == 1 + offset


def test_every_family_has_a_worked_example():
    assert {case.values[0] for case in SOURCES} == set(CORE)
    assert set(families_of("transformers")) == {
        case.values[0][0] for case in SOURCES if case.values[0][1] == "transformers"
    }
