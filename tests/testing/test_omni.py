"""The prompts and the reference of the omni families, as a library of their own."""

import re

import pytest
from hypothesis import given
from omni_support import each_omni, spec_of
from support import assert_same

import vecrope
from tests.testing.searching import never_drawn, smallest
from vecrope.testing import Prompt, Refusal, assert_matches, conversations, token_soup
from vecrope.testing.reference.omni import audio_tokens
from vecrope.testing.rules import omni_reference
from vecrope.testing.sound import sound_block, video_with_sound

SPEC = spec_of("qwen3_omni_moe", "transformers")


@pytest.mark.parametrize(
    ("n_window", "tokens"),
    [
        (None, {1: 0, 2: 0, 3: 1, 6: 1, 7: 2, 8: 2, 100: 25, 3000: 750}),
        (50, {0: 0, 1: 1, 8: 1, 9: 2, 16: 2, 17: 3, 99: 13, 100: 13, 101: 14, 3000: 390}),
    ],
)
def test_audio_tokens(n_window, tokens):
    assert {length: audio_tokens(length, n_window) for length in tokens} == tokens


FEATURES = {
    "an image": lambda prompt: "<I" in "".join(prompt.symbols),
    "an image of two frames": lambda prompt: bool((prompt.image_grid_thw[:, 0] > 1).any()),
    "a video": lambda prompt: "<V" in "".join(prompt.symbols),
    "a video with sound": lambda prompt: "<(V" in "".join(prompt.symbols),
    "audio between frames": lambda prompt: re.search(r"VA+V", "".join(prompt.symbols)),
    "sound that outlasts the video": lambda prompt: "A)>" in "".join(prompt.symbols),
    "a video that outlasts the sound": lambda prompt: "V)>" in "".join(prompt.symbols),
    "a video with sound and audio of its own": lambda prompt: re.search(
        r"<\(.*[^<]\(", "|".join(prompt.symbols)
    ),
    "several rows": lambda prompt: prompt.input_ids.shape[0] > 1,
    "no mask": lambda prompt: prompt.attention_mask is None,
    "a masked token between others": lambda prompt: any(
        re.search("10+1", "".join(map(str, row))) for row in (prompt.attention_mask.tolist())
    ),
    "no grids": lambda prompt: prompt.image_grid_thw is None and prompt.video_grid_thw is None,
    "no audio lengths": lambda prompt: prompt.audio_seqlens is None,
    "zeros": lambda prompt: bool((prompt.image_grid_thw == 0).all(1).any()),
    "a fraction": lambda prompt: bool((prompt.expected()[0] % 1 != 0).any()),
}


def has(feature):
    def check(prompt):
        try:
            return bool(feature(prompt))
        except (AttributeError, TypeError):
            return False  # there is no such tensor

    return check


def test_conversations_have_each_feature():
    features = {name: has(feature) for name, feature in FEATURES.items()}
    assert never_drawn(conversations(SPEC, zeros=True), features) == []


def test_conversations_shrink_to_one_token():
    prompt = smallest(conversations(SPEC), lambda _: True)
    assert prompt.symbols == ["t"]


@each_omni
def test_the_reference_accepts_every_conversation(model_type, convention):
    @given(conversations(spec_of(model_type, convention), zeros=True))
    def check(prompt):
        prompt.expected()

    check()


def accepted(prompt):
    try:
        prompt.expected()
    except Refusal:
        return False
    return True


def test_soup_is_accepted_and_refused():
    features = {
        (fragment, wanted): lambda p, f=fragment, w=wanted: f in p.symbols[0] and accepted(p) == w
        for fragment in ("<t", "A", "<(")
        for wanted in (True, False)
    }
    assert never_drawn(token_soup(SPEC), features) == []


def test_a_prompt_prints_as_what_builds_it():
    names = {"Prompt": Prompt, "MRopeSpec": vecrope.MRopeSpec}
    names |= {"OmniRule": vecrope.families.rules.OmniRule}

    @given(token_soup(SPEC) | token_soup(spec_of("qwen2_5_omni", "vllm", 2, seconds_per_chunk=1)))
    def check(prompt):
        again = eval(repr(prompt), names)
        assert repr(again) == repr(prompt)
        for name, value in prompt.arguments().items():
            other = again.arguments()[name]
            same = value is other if not hasattr(value, "shape") else value.equal(other)
            assert same or value == other

    check()


def test_an_unknown_family_is_printed_in_full():
    from dataclasses import replace

    prompt = Prompt.from_symbols(replace(SPEC, model_type="mine"), ["t"])
    assert repr(prompt).startswith("Prompt.from_symbols(MRopeSpec(model_type='mine'")


@pytest.mark.parametrize(
    ("row", "media", "match"),
    [
        ("(A)", {"audio_seqlens": [-1]}, "too short to have a token"),
        ("<I>", {"image_grid_thw": [[1, 3, 2]]}, "divisible by spatial_merge_size 2"),
        ("<I>", {"image_grid_thw": [[1, -2, 2]]}, "must be positive throughout"),
    ],
)
def test_the_reference_refuses_ill_formed_media(row, media, match):
    with pytest.raises(Refusal, match=match):
        Prompt.from_symbols(SPEC, [row], **media).expected()


def test_what_is_left_over_can_be_ignored():
    prompt = Prompt.from_symbols(SPEC, ["t"], image_grid_thw=[[1, 2, 2]])
    with pytest.raises(Refusal, match="left over"):
        prompt.expected()
    position_ids, _ = prompt.expected(allow_left_over=True)
    assert position_ids.tolist() == [[[0.0]]] * 3


def test_a_function_is_held_to_the_reference():
    prompt = video_with_sound(SPEC, frames=2, height=1, width=2, seconds=0.08)

    def ours(input_ids, **arguments):
        return vecrope.get_rope_index(input_ids, SPEC, **arguments)

    assert_matches(ours, prompt)
    assert_same(ours(**prompt.arguments()), prompt.expected())
    with pytest.raises(AssertionError, match="position_ids differ in row 0, first at token"):
        assert_matches(lambda **given: [x + 1 for x in ours(**given)], prompt)


def test_the_interleaved_block_of_a_processor():
    chunks = spec_of("qwen2_5_omni", "transformers", 2, seconds_per_chunk=1)
    assert sound_block(chunks, (4, 1, 1), 0.5, 19) == "VVAAVVAAA"
    merge = spec_of("qwen3_omni_moe", "transformers", 2)
    assert sound_block(merge, (3, 1, 2), 0.75, 25) == "VVAAVVAVVA"


def test_another_family_has_no_reference_of_omni_families():
    with pytest.raises(TypeError, match="spec must be that of an omni family, got own_rule None"):
        omni_reference(vecrope.MRopeSpec.for_model("glm4v", convention="sglang"))
