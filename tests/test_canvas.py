"""Pictures on canvases (minicpmv4_7): worked examples, the reference, and transformers live."""

import inspect
from dataclasses import replace
from fractions import Fraction
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import assert_same

from vecrope import MRopeSpec, get_rope_index
from vecrope.families.rules import CanvasRule
from vecrope.own_rules.minicpmv4_7.rounded_linspace import spread
from vecrope.testing import Refusal
from vecrope.testing.prompt_canvas import CanvasPrompt, canvas_spec, rules_of
from vecrope.testing.strategies_canvas import canvas_soup, galleries

UPSTREAMS = ("transformers", "sglang", "vllm")
MODES = ("16x", "4x")
each_upstream = pytest.mark.parametrize("upstream", UPSTREAMS)
each_mode = pytest.mark.parametrize("mode", MODES)


def rope_index(prompt, *, by_types=False, **changes):
    arguments = prompt.arguments()
    if not by_types:
        arguments["mm_token_type_ids"] = None
    return get_rope_index(spec=prompt.spec, **{**arguments, **changes})


def hostile(spec):
    soups = (canvas_soup(spec), canvas_soup(spec, zero_sizes=True), canvas_soup(spec, fit=False))
    return st.one_of(galleries(spec), *soups)


# Worked examples: the symbols are those of CanvasPrompt, one row of positions for each axis

IMAGE = {"target_sizes": [[8, 12]]}
SLICED = {"target_sizes": [[4, 8], [8, 8], [8, 8]]}
FRAMES = {"target_sizes_videos": [[4, 8], [4, 8]]}
WORKED = {
    "a thumbnail": (
        "tt(IIIIII)tt",
        IMAGE,
        "0 1 2 2 2 2 2 2 2 2 6 7",
        "0 1 1 2 2 2 3 3 3 4 6 7",
        "0 1 1 2 3 4 2 3 4 5 6 7",
        -4,
    ),
    "two slices in one line": (
        "t(II)<IIII><IIII>t",
        SLICED,
        "0 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 6",
        "0 0 1 1 3 1 1 1 2 2 2 1 1 1 2 2 2 6",
        "0 0 1 4 5 1 1 2 1 2 2 3 3 4 3 4 4 6",
        -11,
    ),
    "frames without anything between them": (
        "t(VV)(VV)t",
        FRAMES,
        "0 1 1 1 1 4 4 4 4 7",
        "0 0 1 1 2 3 4 4 5 7",
        "0 0 1 2 3 3 4 5 6 7",
        -2,
    ),
    "text": ("ttn", {}, "0 1 2", "0 1 2", "0 1 2", 0),
}
NEWLINE = {
    "a newline after a thumbnail": (
        "tt(IIIIII)ntt",
        IMAGE,
        {True: ("0 1 2 2 2 2 2 2 2 2 2 6 7", -5), False: ("0 1 2 2 2 2 2 2 2 2 6 7 8", -4)},
    ),
    "a newline between frames": (
        "t(VV)n(VV)t",
        FRAMES,
        {True: ("0 1 1 1 1 1 4 4 4 4 7", -3), False: ("0 1 1 1 1 4 6 6 6 6 9", -1)},
    ),
}


def numbers(text):
    return [int(number) for number in text.split()]


@each_upstream
@pytest.mark.parametrize(("row", "sizes", "t", "h", "w", "delta"), WORKED.values(), ids=WORKED)
def test_worked_examples(upstream, row, sizes, t, h, w, delta):
    prompt = CanvasPrompt.from_symbols(canvas_spec(upstream), [row], **sizes)
    expected = torch.tensor([[numbers(t)], [numbers(h)], [numbers(w)]]), torch.tensor([[delta]])
    assert_same(rope_index(prompt), expected)
    assert_same(prompt.expected(), expected)


@each_upstream
@pytest.mark.parametrize(("row", "sizes", "answers"), NEWLINE.values(), ids=NEWLINE)
def test_sglang_takes_a_newline_after_a_picture_for_text(upstream, row, sizes, answers):
    prompt = CanvasPrompt.from_symbols(canvas_spec(upstream), [row], **sizes)
    time, delta = answers[upstream != "sglang"]
    for position_ids, rope_deltas in (rope_index(prompt), prompt.expected()):
        assert position_ids[0].tolist() == [numbers(time)]
        assert rope_deltas.tolist() == [[delta]]


def test_a_crop_may_end_its_row():
    prompt = CanvasPrompt.from_symbols(
        canvas_spec("transformers"),
        ["t(II)<IIII"],
        target_sizes=[[4, 8], [8, 8]],
    )
    position_ids, _ = get_rope_index(spec=prompt.spec, **prompt.arguments())
    assert position_ids[:, 0].tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 3, 1, 1, 1, 2, 2],
        [0, 0, 1, 2, 3, 1, 1, 2, 1, 2],
    ]
    assert torch.equal(position_ids, prompt.expected()[0])


def test_lines_end_at_newlines_and_the_thumbnail_is_spread_over_them():
    spec = canvas_spec("transformers", "4x")
    prompt = CanvasPrompt.from_symbols(
        spec, ["(II)<I><I>n<I><I>t"], target_sizes=[[2, 4], *[[2, 2]] * 4]
    )
    _, height, width = rope_index(prompt)[0][:, 0].tolist()
    #                  (  I  I  )  <  I  >  <  I  >  n  <  I  >  <  I  >  t
    assert height == [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 3]
    assert width == [0, 0, 1, 2, 0, 0, 0, 1, 1, 1, 2, 0, 0, 0, 1, 1, 1, 3]


def test_lines_of_different_lengths_are_taken_for_one():
    spec = canvas_spec("transformers")
    prompt = CanvasPrompt.from_symbols(spec, ["(I)<I><I>n<I>t"], target_sizes=[[4, 4]] * 4)
    position_ids, _ = rope_index(prompt)
    assert position_ids[2, 0].tolist() == [0, 0, 3, 0, 0, 0, 1, 1, 1, 3, 2, 2, 2, 4]
    assert torch.equal(position_ids, prompt.expected()[0])


def test_masked_tokens_are_at_0_and_count_as_that_in_deltas():
    prompt = CanvasPrompt.from_symbols(
        canvas_spec("transformers"),
        ["tt(I)t", "tttttt"],
        mask=["011111", "000000"],
        target_sizes=[[4, 4]],
    )
    position_ids, rope_deltas = rope_index(prompt)
    assert position_ids[0].tolist() == [[0, 0, 1, 1, 1, 3], [0] * 6]
    assert rope_deltas.tolist() == [[-1], [1]]


# The reference


def assert_as_the_reference(prompt, *, by_types):
    try:
        expected = prompt.expected(by_types=by_types)
    except Refusal:
        with pytest.raises(ValueError, match=r"target_sizes|row \d+, token|crops"):
            rope_index(prompt, by_types=by_types)
        return
    assert_same(rope_index(prompt, by_types=by_types), expected)
    unchecked = rope_index(prompt, by_types=by_types, validate=False)
    assert_same(unchecked, expected)


@each_upstream
@each_mode
def test_prompts_are_answered_or_refused_as_by_the_reference(upstream, mode):
    @given(hostile(canvas_spec(upstream, mode)), st.booleans())
    def check(prompt, by_types):
        assert_as_the_reference(prompt, by_types=by_types)

    check()


# transformers, live


@cache
def transformers_model(mode):
    from transformers.models.minicpmv4_7.modeling_minicpmv4_7 import MiniCPMV4_7Model

    rule = canvas_spec("transformers").own_rule
    names = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
    ids = {name: getattr(rule, name) for name in names}
    # The methods that give positions need a configuration, and no weights.
    model = object.__new__(MiniCPMV4_7Model)
    torch.nn.Module.__init__(model)
    model.config = SimpleNamespace(downsample_mode=mode, **ids)
    return model


def without_zeros(sizes):
    return None if sizes is None else sizes[sizes.any(1)]


def transformers_rope_index(prompt):
    mode = prompt.spec.own_rule.downsample_mode
    return transformers_model(mode).get_rope_index(**prompt.arguments())


@each_mode
def test_prompts_are_answered_as_by_transformers(mode):
    @given(hostile(canvas_spec("transformers", mode)))
    def check(prompt):
        try:
            ours = rope_index(prompt, by_types=True)
        except ValueError:
            return  # what is refused is tested below and, all of it, against the reference
        # Sizes of zeros are no crops to us alone.
        sizes = ("target_sizes", "target_sizes_videos")
        given_sizes = {name: without_zeros(getattr(prompt, name)) for name in sizes}
        assert_same(ours, transformers_rope_index(replace(prompt, **given_sizes)))
        assert_same(rope_index(prompt), ours)

    check()


def test_an_upstreams_own_mode_is_the_specs():
    spec = canvas_spec("transformers", "4x")
    prompt = CanvasPrompt.from_symbols(spec, ["t(II)t"], target_sizes=[[2, 4]])
    theirs = transformers_model("16x").get_rope_index(downsample_mode="4x", **prompt.arguments())
    assert_same(rope_index(prompt), theirs)


@pytest.mark.parametrize(
    ("row", "sizes"),
    [
        pytest.param("It", [[4, 4]], id="nothing before a crop"),
        pytest.param("t(I)t", [[4, 4], [4, 4]], id="left over"),
        pytest.param("t(I)t", [[5, 4]], id="not divisible"),
        pytest.param("t(III)t", [[4, 4]], id="one position for a run"),
    ],
)
def test_transformers_alone_answers_by_accident(row, sizes):
    prompt = CanvasPrompt.from_symbols(canvas_spec("transformers"), [row], target_sizes=sizes)
    transformers_rope_index(prompt)
    for by_types in (False, True):
        with pytest.raises(ValueError, match=r"target_sizes row|token 0"):
            rope_index(prompt, by_types=by_types)


def test_transformers_alone_answers_crops_that_touch():
    prompt = CanvasPrompt.from_symbols(
        canvas_spec("transformers"),
        ["t(IIV)t"],
        target_sizes=[[4, 8]],
        target_sizes_videos=[[4, 4]],
    )
    position_ids, _ = transformers_rope_index(prompt)
    # The video has written over the second token of the image.
    assert position_ids[0, 0].tolist() == [0, 1, 1, 4, 4, 4, 6]
    with pytest.raises(ValueError, match="row 0, token 4: a crop must follow a marker"):
        rope_index(prompt)


def test_vecrope_alone_answers_where_transformers_fails():
    prompt = CanvasPrompt.from_symbols(
        canvas_spec("transformers"), ["t(I)t"], target_sizes=[[0, 0], [4, 4]]
    )
    with pytest.raises(RuntimeError, match=r"must match|expanded size"):
        transformers_rope_index(prompt)
    assert_same(rope_index(prompt), prompt.expected())


# Specs

IDS = {
    "image_start_id": 1,
    "image_end_id": 2,
    "slice_start_id": 3,
    "slice_end_id": 4,
    "newline_id": 5,
}
CONFIG = {"model_type": "minicpmv4_7", "image_token_id": 6, "video_token_id": 7, **IDS}


def test_a_live_configuration_is_understood():
    import transformers

    config = transformers.MiniCPMV4_7Config(**CONFIG, downsample_mode="4x")
    spec = MRopeSpec.from_config(config, convention="transformers")
    assert spec.own_rule == CanvasRule(**IDS, downsample_mode="4x")
    assert (spec.image_token_id, spec.video_token_id) == (6, 7)
    assert spec.own_rule.downsample_factor == 2


@pytest.mark.parametrize("name", [*IDS, "image_token_id", "video_token_id"])
@each_upstream
def test_a_configuration_without_an_id_is_refused(name, upstream):
    import transformers

    assert getattr(transformers.MiniCPMV4_7Config(), name) is None
    config = {**CONFIG, "uses_mrope_canvas": True, name: None}
    with pytest.raises(ValueError, match=f"no field '{name}'"):
        MRopeSpec.from_config(config, convention=upstream)


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"uses_mrope_canvas": True}, ("sglang", "vllm")),
        ({"mrope_mode": " Canvas"}, ("sglang", "vllm")),
        ({"mrope_mode": "canvas_v2"}, ("vllm",)),
        ({"mrope_mode": "3d"}, ()),
        ({}, ()),
    ],
    ids=str,
)
def test_sglang_and_vllm_need_a_canvas_in_the_configuration(fields, known):
    config = {**CONFIG, **fields}
    rule = MRopeSpec.from_config(config, convention="transformers").own_rule
    assert (rule.crop_rule, rule.newline_closes, rule.downsample_mode) == ("runs", True, "16x")
    for upstream in ("sglang", "vllm"):
        if upstream in known:
            rule = MRopeSpec.from_config(config, convention=upstream).own_rule
            assert rule == CanvasRule(**IDS, crop_rule="markers", newline_closes=upstream == "vllm")
        else:
            with pytest.raises(ValueError, match="must have uses_mrope_canvas true or mrope_mode"):
                MRopeSpec.from_config(config, convention=upstream)


@each_upstream
def test_there_are_no_default_ids(upstream):
    for_model = MRopeSpec.for_model
    with pytest.raises(ValueError, match="has no default image_token_id"):
        for_model("minicpmv4_7", convention=upstream)
    placeholders = {"image_token_id": 6, "video_token_id": 7}
    with pytest.raises(ValueError, match=r"has no default image_start_id: pass own_rule="):
        for_model("minicpmv4_7", convention=upstream, **placeholders)
    rule = CanvasRule(**IDS)
    spec = for_model("minicpmv4_7", convention=upstream, **placeholders, own_rule=rule)
    assert spec.own_rule is rule


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"newline_id": None}, TypeError, "newline_id must be an int, got None"),
        ({"newline_id": True}, TypeError, "newline_id must be an int, got True"),
        ({"slice_end_id": -1}, ValueError, "slice_end_id must be from 0 to .*, got -1"),
        ({"slice_end_id": 1}, ValueError, r"must differ, got \(1, 2, 3, 1, 5\)"),
        ({"newline_closes": 1}, TypeError, "newline_closes must be a bool, got 1"),
        ({"downsample_mode": "8x"}, ValueError, "downsample_mode must be '16x' or '4x', got '8x'"),
        ({"crop_rule": "ids"}, ValueError, "crop_rule must be 'runs' or 'markers', got 'ids'"),
    ],
    ids=str,
)
def test_an_unsound_rule_is_refused(fields, error, message):
    with pytest.raises(error, match=message):
        CanvasRule(**{**IDS, **fields})


def test_without_a_placeholder_id_types_are_needed():
    spec = replace(canvas_spec("transformers"), image_token_id=None, video_token_id=None)
    prompt = CanvasPrompt.from_symbols(
        canvas_spec("transformers"), ["t(I)t"], target_sizes=[[4, 4]]
    )
    prompt = replace(prompt, spec=spec)
    assert_same(rope_index(prompt, by_types=True), prompt.expected(by_types=True))
    with pytest.raises(ValueError, match="left over"):
        rope_index(prompt)
    assert CanvasPrompt.from_symbols(spec, ["t()"]).symbols == ["t()"]


# Rounding


def test_a_thumbnail_is_spread_as_linspace_does():
    extents = torch.arange(1, 201)
    for count in range(1, 65):
        lines = [torch.linspace(0, extent - 1, count) for extent in extents.tolist()]
        expected = torch.stack(lines).round().long()
        got = spread(torch.arange(count), extents[:, None], torch.tensor(count))
        assert torch.equal(got, expected), count


@given(st.integers(2, 2**16), st.data())
def test_large_extents_are_spread_as_linspace_does(extent, data):
    count = data.draw(st.integers(1, (2**20 - 1) // (extent - 1) + 1))
    got = spread(torch.arange(count), torch.tensor(extent), torch.tensor(count))
    assert torch.equal(got, torch.linspace(0, extent - 1, count).round().long())


def test_exact_fractions_would_be_rounded_otherwise():
    # Position 21 of 43 is 1.5, and float32 comes out right below it.
    got = spread(torch.arange(43), torch.tensor(4), torch.tensor(43)).tolist()
    exact = [round(Fraction(3 * index, 42)) for index in range(43)]
    assert [index for index in range(43) if got[index] != exact[index]] == [21]


def test_the_reference_takes_every_rule_of_a_spec():
    from vecrope.testing.reference_canvas import get_rope_index as reference

    tensors = {"input_ids", "target_sizes", "target_sizes_videos"}
    tensors |= {"attention_mask", "mm_token_type_ids"}
    parameters = set(inspect.signature(reference).parameters)
    assert set(rules_of(canvas_spec("sglang"))) == parameters - tensors
