"""Prompts whose positions were worked by hand, and given by the upstreams."""

import pytest
import torch
from oracles import (
    CORE,
    build,
    families_of,
    sglang_rope_index,
    spec_of,
    transformers_rope_index,
    vllm_rope_index,
)
from own_support import needs_sglang, needs_vllm
from support import rope_index

from tests.families.worked_examples import SOURCES

FORMS = {"exact": {}, "static": {"form": "static"}}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


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
