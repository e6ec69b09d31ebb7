"""The omni families on hand-worked cases, against the loop, and rearranged."""

from dataclasses import replace

import pytest
import torch
import transformers
from hypothesis import given
from omni_support import each_omni, each_rate, kept, rope_index, rows_of, spec_of, without_zeros
from support import assert_same

from vecrope import MRopeSpec
from vecrope.families.rules import OmniRule
from vecrope.testing import Refusal
from vecrope.testing.prompt_omni import OmniPrompt, video_with_sound
from vecrope.testing.strategies_omni import omni_conversations, omni_soup

# Hand-worked cases. Where an upstream is named, its own function gives the same.

QWEN2_5, QWEN3 = "qwen2_5_omni", "qwen3_omni_moe"
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
    prompt = OmniPrompt.from_symbols(spec_of(*names, rate, **rule), [row], **media)
    position_ids, rope_deltas = rope_index(prompt)
    for got, want in zip(position_ids[:, 0].tolist(), axes, strict=True):
        assert want is None or got == want
    assert rope_deltas.tolist() == [[delta]]
    assert_same((position_ids, rope_deltas), prompt.expected())


@pytest.mark.parametrize("model_type", [QWEN2_5, QWEN3])
def test_without_grids_padding_counts_as_a_position_as_in_transformers(model_type):
    prompt = OmniPrompt.from_symbols(
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
        answer = rope_index(OmniPrompt.from_symbols(spec, [row], **media))
        assert [tensor.dtype for tensor in answer] == [dtype] * 2


# The loop


@each_omni
@each_rate
def test_conversations_equal_the_loop(model_type, convention, rate):
    @given(omni_conversations(spec_of(model_type, convention, rate), zeros=True))
    def check(prompt):
        assert_same(rope_index(prompt), prompt.expected())
        assert_same(rope_index(prompt, validate=False), prompt.expected())

    check()


@each_omni
def test_soup_equals_the_loop_or_is_refused_by_both(model_type, convention):
    @given(omni_soup(spec_of(model_type, convention, 2)))
    def check(prompt):
        try:
            expected = prompt.expected()
        except Refusal:
            with pytest.raises(ValueError, match=r"row|batch|needs|describe|must"):
                rope_index(prompt)
        else:
            assert_same(rope_index(prompt), expected)

    check()


# Rearranged


@each_omni
def test_rows_are_answered_one_by_one(model_type, convention):
    @given(omni_conversations(spec_of(model_type, convention, 13), zeros=True))
    def check(prompt):
        if prompt.spec.mask_rule == "ignore":
            prompt = replace(prompt, attention_mask=None)
        if prompt.image_grid_thw is None and prompt.video_grid_thw is None:
            prompt = replace(prompt, image_grid_thw=torch.empty((0, 3), dtype=torch.int64))
        position_ids, rope_deltas = rope_index(prompt)
        keep = kept(prompt)
        padded = prompt.spec.delta_length == "padded"
        for number, row in enumerate(rows_of(prompt)):
            want, delta = rope_index(row)
            assert torch.equal(position_ids[:, number, keep[number]], want[:, 0])
            masked = (~keep[number]).sum() if padded else 0
            assert rope_deltas[number] == delta[0] - masked

    check()


@each_omni
def test_packed_equals_padded(model_type, convention):
    @given(omni_conversations(spec_of(model_type, convention, 13)))
    def check(prompt):
        batch, seq_len = prompt.input_ids.shape
        mask = prompt.attention_mask
        position_ids, rope_deltas = rope_index(
            prompt,
            input_ids=prompt.input_ids.reshape(-1),
            attention_mask=None if mask is None else mask.reshape(-1),
            cu_seqlens=torch.arange(batch + 1) * seq_len,
        )
        assert_same((position_ids.view(3, batch, seq_len), rope_deltas), rope_index(prompt))

    check()


@each_omni
def test_packed_rows_of_any_length(model_type, convention):
    @given(omni_conversations(spec_of(model_type, convention, 13)))
    def check(prompt):
        if prompt.image_grid_thw is None and prompt.video_grid_thw is None:
            prompt = replace(prompt, image_grid_thw=torch.empty((0, 3), dtype=torch.int64))
        rows = list(rows_of(prompt))
        lengths = torch.tensor([0] + [row.input_ids.shape[1] for row in rows])
        packed, deltas = rope_index(
            without_zeros(prompt),
            input_ids=torch.cat([row.input_ids[0] for row in rows]),
            attention_mask=None,
            cu_seqlens=lengths.cumsum(0),
        )
        want = [rope_index(row) for row in rows]
        assert_same(
            (packed, deltas),
            (torch.cat([ids[:, 0] for ids, _ in want], 1), torch.cat([delta for _, delta in want])),
        )

    check()


def test_inputs_are_not_changed_and_not_aliased():
    prompt = video_with_sound(
        spec_of(QWEN3, "transformers"), frames=3, height=2, width=2, seconds=1
    )
    before = {
        name: value.clone()
        for name, value in prompt.arguments().items()
        if isinstance(value, torch.Tensor)
    }
    position_ids, _ = rope_index(prompt)
    position_ids.fill_(-5)
    for name, value in before.items():
        assert torch.equal(prompt.arguments()[name], value)


def test_a_list_of_seconds_is_read_as_the_tensor():
    for model_type in (QWEN2_5, QWEN3):
        spec = spec_of(model_type, "transformers")
        prompt = video_with_sound(spec, frames=5, height=2, width=1, seconds=0.5)
        assert_same(rope_index(prompt, second_per_grids=[0.5]), rope_index(prompt))


# Configurations


def complete(config):
    """Give the thinker what its class has no default for, and every checkpoint has."""
    config.thinker_config.vision_start_token_id = 151652
    return config


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_type", "config_class", "convention"),
    [
        (QWEN2_5, "Qwen2_5OmniConfig", "transformers"),
        (QWEN2_5, "Qwen2_5OmniConfig", "vllm"),
        (QWEN3, "Qwen3OmniMoeConfig", "transformers"),
        (QWEN3, "Qwen3OmniMoeConfig", "sglang"),
        (QWEN3, "Qwen3OmniMoeConfig", "vllm"),
    ],
)
def test_configurations_are_understood(model_type, config_class, convention):
    config = getattr(transformers, config_class)()
    want = MRopeSpec.for_model(model_type, convention=convention)
    # Only the talker's class knows where vision starts.
    assert MRopeSpec.from_config(config, convention=convention) == want
    with pytest.raises(ValueError, match=r"no field 'thinker_config\.vision_start_token_id'"):
        MRopeSpec.from_config(config.thinker_config, convention=convention)
    thinker = complete(config).thinker_config
    alone = replace(want, model_type=f"{model_type}_thinker")
    for given_config, spec in (
        (config, want),
        (config.to_dict(), want),
        (thinker, alone),
        (thinker.to_dict(), alone),
    ):
        assert MRopeSpec.from_config(given_config, convention=convention) == spec


def test_a_configuration_is_read_where_each_upstream_reads_it():
    config = {
        "model_type": QWEN2_5,
        "thinker_config": {
            "image_token_index": 1,
            "video_token_index": 2,
            "audio_token_index": 3,
            "vision_start_token_id": 4,
            "audio_start_token_id": 5,
            "position_id_per_seconds": 50,
            "seconds_per_chunk": 3,
            "vision_config": {"spatial_merge_size": 4, "tokens_per_second": 12},
        },
    }
    for convention, rate in (("transformers", 50), ("vllm", 12)):
        spec = MRopeSpec.from_config(config, convention=convention)
        assert spec.tokens_per_second == rate
        assert (spec.image_token_id, spec.video_token_id, spec.vision_start_token_id) == (1, 2, 4)
        assert spec.spatial_merge_size == 4
        rule = spec.own_rule
        assert (rule.audio_token_id, rule.audio_start_token_id) == (3, 5)
        assert rule.seconds_per_chunk == 3
    del config["thinker_config"]["vision_config"]["tokens_per_second"]
    assert MRopeSpec.from_config(config, convention="vllm").tokens_per_second == 25


def test_only_transformers_reads_the_window_of_the_audio_encoder():
    config = {
        "model_type": "qwen3_omni_moe_thinker",
        "image_token_id": 1,
        "video_token_id": 2,
        "audio_token_id": 3,
        "vision_start_token_id": 4,
        "audio_start_token_id": 5,
        "position_id_per_seconds": 13,
        "audio_config": {"n_window": 100},
        "vision_config": {"spatial_merge_size": 2},
    }
    windows = {
        convention: MRopeSpec.from_config(config, convention=convention).own_rule.n_window
        for convention in ("transformers", "sglang", "vllm")
    }
    assert windows == {"transformers": 100, "sglang": 50, "vllm": 50}


def test_sglang_has_no_qwen2_5_omni():
    with pytest.raises(ValueError, match="'transformers' or 'vllm' for 'qwen2_5_omni'"):
        MRopeSpec.for_model(QWEN2_5, convention="sglang")


RULE = {
    "audio_token_id": 1,
    "audio_start_token_id": 2,
    "whole_times": True,
    "interleave": "walk",
    "seconds_per_chunk": 2,
    "sound_markers": "own",
    "sound_end": "piece",
    "text_dtype": "int64",
}


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"audio_token_id": "1"}, TypeError, "audio_token_id must be an int, got '1'"),
        ({"audio_token_id": True}, TypeError, "audio_token_id must be an int, got True"),
        ({"audio_start_token_id": -1}, ValueError, "audio_start_token_id must be from 0"),
        ({"n_window": 0}, ValueError, "n_window must be from 1"),
        ({"seconds_per_chunk": None}, TypeError, "seconds_per_chunk must be a number, got None"),
        ({"seconds_per_chunk": 0}, ValueError, "seconds_per_chunk must be positive, got 0"),
        ({"interleave": "zip"}, ValueError, "interleave must be one of 'merge', 'walk', 'count'"),
        ({"sound_markers": 1}, ValueError, "sound_markers must be one of"),
        ({"sound_end": "end"}, ValueError, "sound_end must be one of 'piece', 'block'"),
        ({"text_dtype": "ids"}, ValueError, "text_dtype must be one of 'int64', 'float32'"),
        ({"text_padding_value": 0.5}, TypeError, "text_padding_value must be an int, got 0.5"),
        ({"whole_times": 1}, TypeError, "whole_times must be a bool, got 1"),
    ],
)
def test_a_rule_checks_its_fields(changes, error, match):
    assert OmniRule(**RULE) == OmniRule(**RULE)
    with pytest.raises(error, match=match):
        OmniRule(**{**RULE, **changes})
