"""SGLang's functions for families other than GLM: worked examples, text, what is left over."""

import inspect
from dataclasses import replace

import pytest
import torch
from own_support import SGLANG_WHEEL
from support import assert_same, grid_list, grid_tensor

from tests.integrations.sglang.calls import (
    FAMILIES,
    GRIDS,
    call,
    omni_prompt,
    prompt_of,
    wheel,
)
from vecrope import get_rope_index as core_rope_index
from vecrope.integrations import sglang as ours


def shown(answer):
    position_ids, rope_deltas = answer
    return position_ids.tolist(), rope_deltas.tolist()


# Worked by hand from the rules, and equal to what SGLang 0.5.23 answers.
EXAMPLES = [
    pytest.param(
        prompt_of("qwen2_vl", "t<VV>t", video_grid_thw=[[2, 2, 2]]),
        [[0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 4, 5], [0, 1, 2, 2, 4, 5]],
        0,
        id="qwen2_vl: the frames of a block are one apart",
    ),
    pytest.param(
        prompt_of(
            "qwen2_5_vl",
            "<VVV>",
            video_grid_thw=[[3, 2, 2]],
            second_per_grid_ts=torch.tensor([0.3]),
        ),
        [[0, 1, 2, 3, 4], [0, 1, 1, 1, 4], [0, 1, 1, 1, 4]],
        0,
        id="qwen2_5_vl: 4 positions a second, times 0, 1.2 and 2.4 rounded down",
    ),
    pytest.param(
        prompt_of("qwen2_5_vl", "<II>", image_grid_thw=[[2, 2, 2]]),
        [[0, 1, 1, 2], [0, 1, 1, 2], [0, 1, 1, 2]],
        -1,
        id="qwen2_5_vl: the frames of an image have one time",
    ),
    pytest.param(
        prompt_of("qwen3_vl", "<V>t<V>", video_grid_thw=[[2, 2, 2]]),
        [list(range(7))] * 3,
        0,
        id="qwen3_vl: each frame stands alone",
    ),
    pytest.param(
        prompt_of("ernie4_5_vl_moe", "tt[VV]t", video_grid_thw=[[4, 2, 2]]),
        [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 3, 5, 6], [0, 1, 2, 3, 3, 5, 6]],
        0,
        id="ernie4_5_vl_moe: four frames are two tokens deep",
    ),
]


@pytest.mark.parametrize(("prompt", "positions", "delta"), EXAMPLES)
def test_worked_examples(prompt, positions, delta):
    expected = torch.tensor(positions).unsqueeze(1), torch.tensor([[delta]])
    assert_same(call(prompt), expected)
    if SGLANG_WHEEL:
        assert_same(call(prompt, wheel()), expected)


def test_a_worked_example_of_qwen3_omni():
    prompt = omni_prompt(
        "t<(VVAAVVAVVA)>t",
        video_grid_thw=[[3, 2, 4]],
        second_per_grids=[0.75],
        audio_seqlens=[32],
        use_audio_in_video=True,
    )
    position_ids, rope_deltas = call(prompt)
    assert position_ids.dtype == rope_deltas.dtype == torch.float32
    times = [0, 1, 2, 3, 3, 3, 4, 4.5, 4.5, 5, 6, 6, 6, 7, 8, 9]
    assert position_ids[0, 0].tolist() == times
    assert rope_deltas.tolist() == [[-6]]


# Text, and what the signature promises


@pytest.mark.parametrize("model_type", [*FAMILIES, "qwen3_omni_moe", "a model of no family"])
@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (2, 0)])
def test_without_grids_there_is_one_row_of_int64(model_type, shape):
    input_ids = torch.zeros(shape, dtype=torch.int32)
    expected = torch.arange(shape[1]).expand(3, 1, -1), torch.tensor([[0]])
    if model_type == "ernie4_5_vl_moe":
        assert_same(ours.get_rope_index_ernie45(input_ids, None, None, None), expected)
        return
    omni = {"audio_token_id": 1, "audio_start_token_id": 2, "position_id_per_seconds": 25}
    answer = ours.get_rope_index(2, 5, 6, 7, model_type, input_ids=input_ids, **omni)
    assert_same(answer, expected)


@pytest.mark.parametrize(
    ("function", "names", "defaults"),
    [
        (ours.get_rope_index_ernie45, "input_ids hf_config image_grid_thw video_grid_thw", 0),
        (
            ours.get_rope_index,
            "spatial_merge_size image_token_id video_token_id vision_start_token_id model_type "
            "tokens_per_second input_ids image_grid_thw video_grid_thw second_per_grid_ts",
            5,
        ),
        (
            ours.get_rope_index_qwen3_omni,
            "spatial_merge_size image_token_id video_token_id vision_start_token_id "
            "tokens_per_second input_ids image_grid_thw video_grid_thw second_per_grid_ts",
            5,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_signatures(function, names, defaults):
    *named, others = inspect.signature(function).parameters.values()
    assert [parameter.name for parameter in named] == names.split()
    assert others.kind == inspect.Parameter.VAR_KEYWORD
    given_defaults = [p.default for p in named if p.default is not inspect.Parameter.empty]
    assert given_defaults == [None] * defaults


def test_names_that_are_numbered_as_another_family():
    block = prompt_of("qwen2_vl", "<VVt", video_grid_thw=[[2, 2, 2]])
    assert_same(call(block, model_type="intern_s2_preview"), block.expected())
    frames = prompt_of("qwen3_vl", "<V<V", video_grid_thw=[[2, 2, 2]])
    assert_same(call(frames, model_type="interns2_mobius"), frames.expected())


@pytest.mark.parametrize("video_token_id", [None, -1])
def test_no_id_of_videos(video_token_id):
    prompt = prompt_of("qwen2_vl", "<It", image_grid_thw=[[1, 2, 2]])
    spec = prompt.spec
    ids = (spec.image_token_id, video_token_id, spec.vision_start_token_id)
    media = {"input_ids": prompt.input_ids, "image_grid_thw": prompt.image_grid_thw}
    assert_same(ours.get_rope_index(2, *ids, "qwen2_vl", **media), prompt.expected())


@pytest.mark.parametrize("rate", [2, 2.5])
def test_whole_seconds(rate):
    prompt = prompt_of("qwen2_5_vl", "<VVV", video_grid_thw=[[3, 2, 2]])
    prompt = replace(prompt, spec=replace(prompt.spec, tokens_per_second=rate))
    expected = call(prompt, second_per_grid_ts=[3.0])
    assert_same(call(prompt, second_per_grid_ts=torch.tensor([3])), expected)


# What SGLang does not mind


def one_row(model_type):
    """Return a row of an image and a video of two frames or steps, and their grids."""
    rows = {"ernie4_5_vl_moe": "tI[VV]t", "qwen3_vl": "<It<V<Vt"}
    frames = 4 if model_type == "ernie4_5_vl_moe" else 2
    return rows.get(model_type, "<It<VVt"), [[1, 2, 2]], [[frames, 2, 2]]


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "ernie4_5_vl_moe"])
def test_left_over_grids_and_odd_sides_are_no_error(model_type):
    row, images, videos = one_row(model_type)
    expected = prompt_of(model_type, row, image_grid_thw=images, video_grid_thw=videos).expected()
    odd = [[grid[0], 3, 3] for grid in images], [[grid[0], 3, 3] for grid in videos]
    for images_given, videos_given in (
        ([*images, [1, 4, 4]], [*videos, [2, 4, 4]]),
        odd,
        (odd[0] * 2, odd[1] * 2),
    ):
        prompt = prompt_of(
            model_type, row, image_grid_thw=images_given, video_grid_thw=videos_given
        )
        with pytest.raises(ValueError, match=r"left over|divisible"):
            core_rope_index(
                prompt.input_ids,
                prompt.spec,
                image_grid_thw=prompt.image_grid_thw,
                video_grid_thw=prompt.video_grid_thw,
            )
        assert_same(call(prompt), expected)
        assert_same(
            call(prompt, **{name: grid_list(getattr(prompt, name)) for name in GRIDS}), expected
        )


def test_frames_left_over():
    prompt = prompt_of("qwen3_vl", "<V<Vt", video_grid_thw=[[5, 2, 2], [1, 4, 4]])
    assert_same(call(prompt), replace(prompt, video_grid_thw=grid_tensor([[2, 2, 2]])).expected())


@pytest.mark.parametrize("seconds", [[0.5, 0.25, 7.0], torch.tensor([0.5, 0.25, 7.0])])
def test_seconds_left_over(seconds):
    prompt = prompt_of("qwen2_5_vl", "<VVt", video_grid_thw=[[2, 2, 2]], second_per_grid_ts=[0.5])
    assert_same(call(prompt, second_per_grid_ts=seconds), prompt.expected())
    two = prompt_of("qwen2_5_vl", "<VVt", video_grid_thw=[[2, 2, 2], [1, 4, 4]])
    assert_same(call(two, second_per_grid_ts=seconds), prompt.expected())
    image = prompt_of("qwen2_5_vl", "<It", image_grid_thw=[[1, 2, 2]])
    assert_same(call(image, second_per_grid_ts=seconds), image.expected())


def test_media_left_over_with_qwen3_omni():
    media = {
        "image_grid_thw": [[1, 2, 2]],
        "video_grid_thw": [[2, 2, 2]],
        "second_per_grids": [0.5],
        "audio_seqlens": [8],
    }
    row = "t<I>(A)<VV>t"
    expected = omni_prompt(row, **media).expected()
    more = {name: values * 2 for name, values in media.items()}
    assert_same(call(omni_prompt(row, **more)), expected)
    odd = {**more, "image_grid_thw": [[1, 2, 3]], "video_grid_thw": [[2, 3, 2]]}
    assert_same(call(omni_prompt(row, **odd)), expected)
    sound = {**media, "use_audio_in_video": True, "video_grid_thw": [[1, 2, 2]]}
    expected = omni_prompt("<(VA)><I>", **sound).expected()
    more = {**sound, "video_grid_thw": [[1, 2, 2]] * 3, "second_per_grids": [0.5] * 3}
    assert_same(call(omni_prompt("<(VA)><I>", **more)), expected)
    no_audio = {**media, "audio_seqlens": None, "video_grid_thw": None, "second_per_grids": None}
    more = {**no_audio, "image_grid_thw": [[1, 2, 2]] * 2}
    assert_same(call(omni_prompt("t<I>", **more)), omni_prompt("t<I>", **no_audio).expected())
