"""The adapters of SGLang's functions for Qwen-VL, ERNIE-4.5-VL and Qwen3-Omni."""

import inspect
import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import omni_support
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import ernie_configuration, families_of, spec_of
from own_support import SGLANG_WHEEL, needs_sglang
from support import assert_same, grid_list, grid_tensor

from bench.wheels import Wheel, load
from vecrope import get_rope_index as core_rope_index
from vecrope.integrations import sglang as ours
from vecrope.testing import Prompt, assert_matches, conversations, token_soup
from vecrope.testing.prompt_omni import OmniPrompt
from vecrope.testing.strategies_omni import omni_conversations

NAMES = (
    *("get_rope_index", "get_rope_index_glm4v"),
    *("get_rope_index_ernie45", "get_rope_index_qwen3_omni"),
)
FAMILIES = [name for name in families_of("sglang") if not name.startswith(("glm", "qwen3_asr"))]
each_family = pytest.mark.parametrize("model_type", FAMILIES)
GRIDS = ("image_grid_thw", "video_grid_thw")


@cache
def wheel():
    helpers = ("_get_feat_extract_output_lengths", "_get_llm_pos_ids_for_vision")
    member = "sglang/srt/layers/rotary_embedding/mrope_rope_index.py"
    files = Wheel(Path(SGLANG_WHEEL), "sglang")
    assert files.version == "0.5.23"
    return SimpleNamespace(
        **load(files, member, *NAMES, *helpers, torch=torch, itertools=itertools)
    )


def spec_for(model_type):
    return spec_of(model_type, "sglang")


def call(prompt, functions=ours, *, model_type=None, **changes):
    """Call the function of the prompt's family, ours or SGLang's."""
    spec = prompt.spec
    arguments = {**prompt.arguments(), **changes}
    grids = {name: arguments[name] for name in GRIDS}
    if spec.model_type == "ernie4_5_vl_moe":
        config = ernie_configuration(spec)
        return functions.get_rope_index_ernie45(arguments["input_ids"], config, **grids)
    omni = {}
    if spec.own_rule is not None:
        omni = {
            "audio_token_id": spec.own_rule.audio_token_id,
            "audio_start_token_id": spec.own_rule.audio_start_token_id,
            "position_id_per_seconds": spec.tokens_per_second,
            **{name: arguments[name] for name in ("audio_seqlens", "use_audio_in_video")},
        }
    return functions.get_rope_index(
        spec.spatial_merge_size,
        spec.image_token_id,
        spec.video_token_id,
        spec.vision_start_token_id,
        model_type or spec.model_type,
        spec.tokens_per_second,
        arguments["input_ids"],
        *grids.values(),
        arguments.get("second_per_grid_ts", arguments.get("second_per_grids")),
        **omni,
    )


def prompt_of(model_type, *rows, **arguments):
    spec = spec_for(model_type)
    if spec.video_token_id is None:
        rows = [row.replace("V", "I") for row in rows]
    return Prompt.from_symbols(spec, rows, **arguments)


def omni_prompt(*rows, rate=2, **arguments):
    spec = omni_support.spec_of("qwen3_omni_moe", "sglang", rate)
    return OmniPrompt.from_symbols(spec, rows, **arguments)


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


# Refusals


@pytest.mark.parametrize(
    ("error", "message", "function"),
    [
        pytest.param(
            ValueError,
            "model_type must be 'qwen3_omni_moe' or one of 'qwen2_vl', .*, got 'mimo_v2'",
            lambda: call(
                prompt_of("qwen2_vl", "<I", image_grid_thw=[[1, 2, 2]]), model_type="mimo_v2"
            ),
            id="an unknown family",
        ),
        pytest.param(
            TypeError,
            "tokens_per_second must be a number .*, got None",
            lambda: ours.get_rope_index(
                *(2, 5, 6, 7, "paddleocr_vl"),
                input_ids=torch.tensor([[7, 5]]),
                image_grid_thw=torch.tensor([[1, 2, 2]]),
            ),
            id="no rate",
        ),
        pytest.param(
            ValueError,
            "needs a vision_start_token_id .* SGLang would number them as text",
            lambda: call(prompt_of("qwen2_vl", "tIt", image_grid_thw=[[1, 2, 2]])),
            id="placeholders without a marker",
        ),
        pytest.param(
            ValueError,
            "holds image tokens beyond the last grid",
            lambda: call(prompt_of("qwen3_vl", "<It<I", image_grid_thw=[[1, 2, 2]])),
            id="a missing grid",
        ),
        pytest.param(
            ValueError,
            "image 0: .* needs 4 tokens, got 2 .* truncated inside the image",
            lambda: call(prompt_of("ernie4_5_vl_moe", "tII", image_grid_thw=[[1, 4, 4]])),
            id="a truncated image",
        ),
        pytest.param(
            ValueError,
            r"second_per_grid_ts must have shape \(2,\).* got \(1,\)",
            lambda: call(
                prompt_of("qwen2_5_vl", "<V<V", video_grid_thw=[[1, 2, 2]] * 2),
                second_per_grid_ts=[0.5],
            ),
            id="too few seconds",
        ),
        pytest.param(
            ValueError,
            r"second_per_grid_ts must have shape \(1,\).* got \(\)",
            lambda: call(
                prompt_of("qwen2_5_vl", "<V", video_grid_thw=[[1, 2, 2]]),
                second_per_grid_ts=torch.tensor(0.5),
            ),
            id="seconds without a dimension",
        ),
        pytest.param(
            ValueError,
            r"image_grid_thw must be .* nested lists, got \[\[1\], \[1, 2\]\]",
            lambda: call(prompt_of("qwen2_vl", "t"), image_grid_thw=[[1], [1, 2]]),
            id="ragged grids",
        ),
        pytest.param(
            TypeError,
            "input_ids must be a tensor, got NoneType",
            lambda: ours.get_rope_index(2, 5, 6, 7, "qwen2_vl"),
            id="no ids",
        ),
        pytest.param(
            ValueError,
            r"input_ids must have shape \(B, T\), got \(2,\)",
            lambda: ours.get_rope_index_ernie45(torch.ones(2), None, None, None),
            id="ids without rows",
        ),
        pytest.param(
            KeyError,
            "audio_token_id",
            lambda: ours.get_rope_index_qwen3_omni(2, 5, 6, 7, input_ids=torch.ones(1, 2)),
            id="omni without its keywords",
        ),
        pytest.param(
            ValueError,
            "audio 0",
            lambda: call(omni_prompt("t(A)<I>", image_grid_thw=[[1, 2, 2]], audio_seqlens=[99])),
            id="a truncated audio",
        ),
    ],
)
def test_refusals(error, message, function):
    with pytest.raises(error, match=message):
        function()


# Any prompt


def with_grids(prompt):
    """Return the prompt with empty grids where it has none: all tokens must not be text."""
    if prompt.image_grid_thw is None and prompt.video_grid_thw is None:
        return replace(prompt, image_grid_thw=grid_tensor([]))
    return prompt


@each_family
def test_answers_and_refusals_are_those_of_the_loop(model_type):
    spec = spec_for(model_type)

    @given(conversations(spec) | token_soup(spec, zero_grids=True))
    def check(prompt):
        prompt = with_grids(prompt)
        assert_matches(lambda **_: call(prompt), prompt, allow_left_over=True)

    check()


def test_omni_answers_are_those_of_the_loop():
    @given(omni_conversations(omni_support.spec_of("qwen3_omni_moe", "sglang", 13.0)))
    def check(prompt):
        if prompt.image_grid_thw is None and prompt.video_grid_thw is None:
            prompt = replace(prompt, image_grid_thw=grid_tensor([]))
        assert_same(call(prompt), prompt.expected())

    check()


# SGLang itself


@needs_sglang
@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_the_wheels(name):
    def of(functions):
        signature = inspect.signature(getattr(functions, name))
        return [(p.name, p.kind, p.default) for p in signature.parameters.values()]

    assert of(ours) == of(wheel())


@st.composite
def careless(draw, prompts):
    """Draw a prompt with grids that are left over, and with sides a little too large."""
    prompt = draw(prompts)
    extra = draw(st.booleans())
    more = draw(st.integers(0, prompt.spec.spatial_merge_size - 1))
    changes = {}
    for name in GRIDS:
        grids = getattr(prompt, name)
        if grids is not None:
            grids = grids + torch.tensor([0, more, more])
            changes[name] = torch.cat((grids, grid_tensor([[1, 2, 2]] * extra)))
    if prompt.second_per_grid_ts is not None and extra:
        seconds = prompt.second_per_grid_ts
        as_tensor = isinstance(seconds, torch.Tensor)
        longer = [*seconds, 1.0]
        changes["second_per_grid_ts"] = (
            torch.tensor(longer, dtype=seconds.dtype) if as_tensor else longer
        )
    return replace(prompt, **changes)


@needs_sglang
@each_family
def test_conversations_get_the_wheels_answer(model_type):
    @given(careless(conversations(spec_for(model_type))))
    def check(prompt):
        assert_same(call(prompt), call(prompt, wheel()))

    check()


@needs_sglang
@pytest.mark.parametrize("name", ["intern_s2_preview", "interns2_mobius"])
def test_other_names_get_the_wheels_answer(name):
    like = {"intern_s2_preview": "qwen2_vl", "interns2_mobius": "qwen3_vl"}[name]

    @given(conversations(spec_for(like)))
    def check(prompt):
        assert_same(call(prompt, model_type=name), call(prompt, wheel(), model_type=name))

    check()


@needs_sglang
@each_family
def test_fitting_soup_gets_the_wheels_answer(model_type):
    spec = spec_for(model_type)

    @given(token_soup(spec))
    def check(prompt):
        # There SGLang looks at the token after the last.
        assume(spec.vision_start_token_id not in prompt.input_ids[:, -1].tolist())
        assert_same(call(prompt), call(prompt, wheel()))

    check()


@needs_sglang
@omni_support.each_rate
def test_omni_conversations_get_the_wheels_answer(rate):
    @given(omni_conversations(omni_support.spec_of("qwen3_omni_moe", "sglang", rate)))
    def check(prompt):
        assert_same(call(prompt), call(prompt, wheel()))

    check()


@needs_sglang
@pytest.mark.parametrize("rate", [2, 2.5])
def test_whole_seconds_get_the_wheels_answer(rate):
    prompt = prompt_of("qwen2_5_vl", "<VVV", video_grid_thw=[[3, 2, 2]])
    prompt = replace(prompt, spec=replace(prompt.spec, tokens_per_second=rate))
    for seconds in (torch.tensor([3]), [3]):
        answers = [call(prompt, f, second_per_grid_ts=seconds) for f in (ours, wheel())]
        assert_same(*answers)
