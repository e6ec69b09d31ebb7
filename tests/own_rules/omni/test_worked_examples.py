"""The omni families on hand-worked cases; an upstream that is named gives the same."""

import pytest
import torch
from omni_support import rope_index, spec_of
from support import assert_same

from tests.own_rules.omni.prompts import QWEN2_5, QWEN3
from vecrope.testing import Prompt

SOUND = {"use_audio_in_video": True}


def case(name, family, rate, row, temporal, height=None, width=None, delta=None, **media):
    return pytest.param(family, rate, row, (temporal, height, width), delta, media, id=name)


CASES = [
    case(
        "chunked interleave, transformers 5.23",
        (QWEN2_5, "transformers", {"seconds_per_chunk": 1}),
        2,
        "t<(VVAAVVAAA)>t",
        [0, 1, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 7, 8],
        [0, 1, 1, 2, 2, 2, 3, 2, 2, 4, 5, 6, 7, 7, 8],
        delta=-6,
        video_grid_thw=[[4, 2, 2]],
        second_per_grids=[0.5],
        audio_seqlens=[19],
        **SOUND,
    ),
    case(
        "ends follow a short last piece, transformers 5.23",
        (QWEN2_5, "transformers", {}),
        25,
        "t<(" + "V" * 16 + "A)>t",
        [0, 1, 1, *[2] * 16, 2, 3, 3, 4],
        [0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 2, 3, 3, 4],
        [0, 1, 1, *[2, 3, 4, 5] * 4, 2, 3, 3, 4],
        delta=-17,
        video_grid_thw=[[1, 8, 8]],
        second_per_grids=[1.0],
        audio_seqlens=[3],
        **SOUND,
    ),
    case(
        "values past several chunks cut frames in half, transformers 5.23",
        (QWEN2_5, "transformers", {"seconds_per_chunk": 1}),
        2,
        "<(VVAAVAAVAAVAAVAA)>",
        # Chunks of the video {0, 0} {4} {4} {8} {8}, of the sound two tokens each.
        [0, 0, 1, 1, 1, 2, 5, 3, 4, 5, 5, 6, 9, 7, 8, 9, 9, 10, 11, 11],
        [0, 0, 1, 1, 1, 2, 1, 3, 4, 1, 5, 6, 1, 7, 8, 1, 9, 10, 11, 11],
        [0, 0, 1, 2, 1, 2, 1, 3, 4, 2, 5, 6, 1, 7, 8, 2, 9, 10, 11, 11],
        delta=-8,
        video_grid_thw=[[3, 2, 4]],
        second_per_grids=[2.0],
        audio_seqlens=[39],
        **SOUND,
    ),
    case(
        "positions one token early, vLLM 0.33",
        (QWEN2_5, "vllm", {"seconds_per_chunk": 1}),
        2,
        "t<(VVAAVVAAA)>t",
        [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10],
        delta=-4,
        video_grid_thw=[[4, 2, 2]],
        second_per_grids=[0.5],
        audio_seqlens=[19],
        **SOUND,
    ),
    case(
        "fractions are kept, transformers 5.23 and SGLang 0.5.23",
        (QWEN3, "transformers", {}),
        2,
        "t<VVV>t",
        [0, 1, 2, 3.5, 5, 6, 7],
        [0, 1, 2, 2, 2, 6, 7],
        [0, 1, 2, 2, 2, 6, 7],
        delta=1,
        video_grid_thw=[[3, 2, 2]],
        second_per_grids=[0.75],
    ),
    case(
        "fractions survive into the text, transformers 5.23",
        (QWEN3, "transformers", {}),
        2,
        "<VV><VV>",
        [0, 1, 2.5, 3.5, 4.5, 5.5, 7, 8],
        delta=1,
        video_grid_thw=[[2, 2, 2], [2, 2, 2]],
        second_per_grids=[0.75, 0.75],
    ),
    case(
        "times are cut to whole numbers, vLLM 0.33",
        (QWEN3, "vllm", {}),
        2,
        "<VV><VV>",
        [0, 1, 2, 3, 4, 5, 6, 7],
        delta=0,
        video_grid_thw=[[2, 2, 2], [2, 2, 2]],
        second_per_grids=[0.75, 0.75],
    ),
    case(
        "merge, transformers 5.23 and SGLang 0.5.23",
        (QWEN3, "transformers", {}),
        2,
        "t<(VVAAVVAVVA)>t",
        [0, 1, 2, 3, 3, 3, 4, 4.5, 4.5, 5, 6, 6, 6, 7, 8, 9],
        [0, 1, 2, 3, 3, 3, 4, 3, 3, 5, 3, 3, 6, 7, 8, 9],
        [0, 1, 2, 3, 4, 3, 4, 3, 4, 5, 3, 4, 6, 7, 8, 9],
        delta=-6,
        video_grid_thw=[[3, 2, 4]],
        second_per_grids=[0.75],
        audio_seqlens=[25],
        **SOUND,
    ),
    case(
        "whole times change the merge, vLLM 0.33",
        (QWEN3, "vllm", {}),
        2,
        "t<(VVAAVVAVVA)>t",
        [0, 1, 2, 3, 3, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8, 9],
        [0, 1, 2, 3, 3, 3, 3, 3, 4, 5, 3, 3, 6, 7, 8, 9],
        delta=-6,
        video_grid_thw=[[3, 2, 4]],
        second_per_grids=[0.75],
        audio_seqlens=[25],
        **SOUND,
    ),
    case(
        "ties go to the video, transformers 5.23",
        (QWEN3, "transformers", {}),
        1,
        "<(VAVA)>",
        [0, 1, 2, 2, 3, 3, 4, 5],
        [0, 1, 2, 2, 2, 3, 4, 5],
        delta=-2,
        video_grid_thw=[[2, 2, 2]],
        second_per_grids=[1.0],
        audio_seqlens=[16],
        **SOUND,
    ),
    case(
        "ends follow what remains, transformers 5.23",
        (QWEN3, "transformers", {}),
        25,
        "<(" + "V" * 16 + "A)>t",
        [0, 1, *[2] * 16, 2, 3, 4, 5],
        [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 2, 3, 4, 5],
        delta=-16,
        video_grid_thw=[[1, 8, 8]],
        second_per_grids=[1.0],
        audio_seqlens=[8],
        **SOUND,
    ),
    case(
        "ends follow the whole block, vLLM 0.33",
        (QWEN3, "vllm", {}),
        25,
        "<(" + "V" * 16 + "A)>t",
        [0, 1, *[2] * 16, 2, 6, 7, 8],
        delta=-13,
        video_grid_thw=[[1, 8, 8]],
        second_per_grids=[1.0],
        audio_seqlens=[8],
        **SOUND,
    ),
    case(
        "each sum is rounded, transformers 5.23",
        (QWEN3, "transformers", {}),
        13,
        "t" * 999 + "<VVV>t",
        [
            *range(1001),
            1008.6666870117188,
            1017.3333129882812,
            1018.3333129882812,
            1019.3333129882812,
        ],
        delta=15.33331298828125,
        video_grid_thw=[[3, 2, 2]],
        second_per_grids=[2 / 3],
    ),
    case(
        "audio is text, transformers 5.23",
        (QWEN3, "transformers", {}),
        2,
        "t(AA)t<I>",
        [0, 1, 2, 3, 4, 5, 6, 7, 8],
        delta=0,
        image_grid_thw=[[1, 2, 2]],
        audio_seqlens=[16],
    ),
]


@pytest.mark.parametrize(("family", "rate", "row", "axes", "delta", "media"), CASES)
def test_hand_worked_cases(family, rate, row, axes, delta, media):
    *names, rule = family
    prompt = Prompt.from_symbols(spec_of(*names, rate, **rule), [row], **media)
    position_ids, rope_deltas = rope_index(prompt)
    for got, want in zip(position_ids[:, 0].tolist(), axes, strict=True):
        assert want is None or got == want
    assert rope_deltas.tolist() == [[delta]]
    assert_same((position_ids, rope_deltas), prompt.expected())


@pytest.mark.parametrize("model_type", [QWEN2_5, QWEN3])
def test_without_grids_padding_counts_as_a_position_as_in_transformers(model_type):
    prompt = Prompt.from_symbols(
        spec_of(model_type, "transformers"), ["ttt"] * 3, mask=["001", "111", "000"]
    )
    position_ids, rope_deltas = rope_index(prompt)
    assert position_ids[0].tolist() == [[1, 1, 0], [0, 1, 2], [1, 1, 1]]
    assert rope_deltas.tolist() == [[1], [0], [2]]


@pytest.mark.parametrize(
    ("model_type", "convention", "with_grids", "without"),
    [
        (QWEN2_5, "transformers", torch.int64, torch.int64),
        (QWEN2_5, "vllm", torch.int64, torch.int64),
        (QWEN3, "transformers", torch.float32, torch.float32),
        (QWEN3, "sglang", torch.float32, torch.int64),
        (QWEN3, "vllm", torch.int64, torch.int64),
    ],
)
def test_dtypes(model_type, convention, with_grids, without):
    spec = spec_of(model_type, convention)
    for row, media, dtype in (
        ("t<I>", {"image_grid_thw": [[1, 2, 2]]}, with_grids),
        ("ttt", {}, without),
        ("", {"image_grid_thw": []}, with_grids),
        ("", {}, without),
    ):
        answer = rope_index(Prompt.from_symbols(spec, [row], **media))
        assert [tensor.dtype for tensor in answer] == [dtype] * 2
