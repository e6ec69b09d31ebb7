"""MiniCPM-V 4.7: worked examples, the reference, and transformers live."""

import inspect
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from own_support import minicpm_spec
from support import assert_same

from tests.own_rules.minicpmv4_7.calls import (
    each_upstream,
    hostile,
    rope_index,
    transformers_model,
    without_zeros,
)
from vecrope import get_rope_index
from vecrope.testing import Prompt, Refusal
from vecrope.testing.rules import minicpm_rules

MODES = ("16x", "4x")

each_mode = pytest.mark.parametrize("mode", MODES)

# Worked examples: the symbols are those of Prompt, one row of positions for each axis


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
    "a slice that reaches beyond the canvas": (
        "(I)<I>n<IIII>t",
        {"target_sizes": [[4, 4], [4, 4], [16, 4]]},
        "0 0 0 0 0 0 0 0 0 0 0 0 0 3",
        "0 0 2 0 0 0 0 1 1 2 3 4 4 3",
        "0 0 1 0 0 0 1 0 0 0 0 0 0 3",
        -9,
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
    prompt = Prompt.from_symbols(minicpm_spec(upstream), [row], **sizes)
    expected = torch.tensor([[numbers(t)], [numbers(h)], [numbers(w)]]), torch.tensor([[delta]])
    assert_same(rope_index(prompt), expected)
    assert_same(prompt.expected(), expected)


@each_upstream
@pytest.mark.parametrize(("row", "sizes", "answers"), NEWLINE.values(), ids=NEWLINE)
def test_sglang_takes_a_newline_after_a_picture_for_text(upstream, row, sizes, answers):
    prompt = Prompt.from_symbols(minicpm_spec(upstream), [row], **sizes)
    time, delta = answers[upstream != "sglang"]
    for position_ids, rope_deltas in (rope_index(prompt), prompt.expected()):
        assert position_ids[0].tolist() == [numbers(time)]
        assert rope_deltas.tolist() == [[delta]]


@pytest.mark.parametrize(
    ("row", "sizes", "axes", "delta"),
    [
        (
            "t(II)<IIII",
            [[4, 8], [8, 8]],
            [
                [0, 1, 1, 1, 1, 1, 1, 1, 1, 1],
                [0, 0, 1, 1, 3, 1, 1, 1, 2, 2],
                [0, 0, 1, 2, 3, 1, 1, 2, 1, 2],
            ],
            -6,
        ),
        # Without a marker behind it nothing stands past a corner of the canvas.
        ("t(II", [[4, 8]], [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 2]], -1),
    ],
    ids=["a slice", "a thumbnail"],
)
def test_a_crop_may_end_its_row(row, sizes, axes, delta):
    prompt = Prompt.from_symbols(minicpm_spec("transformers"), [row], target_sizes=sizes)
    answer = get_rope_index(spec=prompt.spec, **prompt.arguments())
    assert_same(answer, (torch.tensor(axes).unsqueeze(1), torch.tensor([[delta]])))
    assert_same(answer, prompt.expected())
    assert_same(answer, transformers_rope_index(prompt))


def test_lines_end_at_newlines_and_the_thumbnail_is_spread_over_them():
    spec = minicpm_spec("transformers", "4x")
    prompt = Prompt.from_symbols(spec, ["(II)<I><I>n<I><I>t"], target_sizes=[[2, 4], *[[2, 2]] * 4])
    _, height, width = rope_index(prompt)[0][:, 0].tolist()
    #                  (  I  I  )  <  I  >  <  I  >  n  <  I  >  <  I  >  t
    assert height == [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 3]
    assert width == [0, 0, 1, 2, 0, 0, 0, 1, 1, 1, 2, 0, 0, 0, 1, 1, 1, 3]


def test_lines_of_different_lengths_are_taken_for_one():
    spec = minicpm_spec("transformers")
    prompt = Prompt.from_symbols(spec, ["(I)<I><I>n<I>t"], target_sizes=[[4, 4]] * 4)
    position_ids, _ = rope_index(prompt)
    assert position_ids[2, 0].tolist() == [0, 0, 3, 0, 0, 0, 1, 1, 1, 3, 2, 2, 2, 4]
    assert torch.equal(position_ids, prompt.expected()[0])


def test_masked_tokens_are_at_0_and_count_as_that_in_deltas():
    prompt = Prompt.from_symbols(
        minicpm_spec("transformers"),
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
    @given(hostile(minicpm_spec(upstream, mode)), st.booleans())
    def check(prompt, by_types):
        assert_as_the_reference(prompt, by_types=by_types)

    check()


@st.composite
def reaching(draw, spec):
    """Draw rows of slices, later ones longer than the first, in front of a short text or of none.

    So the largest position of many a row is that of a slice that is not the last thing in it.
    """
    factor, rows, sizes = spec.own_rule.downsample_factor, [], []
    for _ in range(6):
        row = draw(st.sampled_from(["", "t", "(I)t"]))
        sizes += [(factor, factor)] * row.count("I")
        crops = [(1, 1), (1, 1)]
        for _ in range(draw(st.integers(1, 3))):
            crop = draw(st.integers(1, 9)), draw(st.sampled_from([1, 1, 2]))
            crops.append(crop if draw(st.booleans()) else crop[::-1])
        for at, (height, width) in enumerate(crops):
            crop = "I" * (height * width)
            between = "" if at < 2 else draw(st.sampled_from(["", "n"]))
            row += f"{between}<{crop}>" if at else f"({crop})"
            sizes.append((height * factor, width * factor))
        rows.append(row + draw(st.sampled_from(["", "t", "tt", "n(I)", "t(I)t"])))
        sizes += [(factor, factor)] * rows[-1][len(row) :].count("I")
    seq_len = max(map(len, rows))
    return Prompt.from_symbols(
        spec,
        [row.ljust(seq_len, "t") for row in rows],
        mask=[("1" * len(row)).ljust(seq_len, "0") for row in rows],
        target_sizes=sizes,
    )


@each_upstream
def test_a_slice_that_reaches_furthest_is_in_the_delta(upstream):
    @given(reaching(minicpm_spec(upstream)), st.booleans())
    def check(prompt, by_types):
        assert_same(rope_index(prompt, by_types=by_types), prompt.expected(by_types=by_types))
        if upstream == "transformers":
            assert_same(rope_index(prompt), transformers_rope_index(prompt))

    check()


def transformers_rope_index(prompt):
    mode = prompt.spec.own_rule.downsample_mode
    return transformers_model(mode).get_rope_index(**prompt.arguments())


@each_mode
def test_prompts_are_answered_as_by_transformers(mode):
    @given(hostile(minicpm_spec("transformers", mode)))
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
    spec = minicpm_spec("transformers", "4x")
    prompt = Prompt.from_symbols(spec, ["t(II)t"], target_sizes=[[2, 4]])
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
    prompt = Prompt.from_symbols(minicpm_spec("transformers"), [row], target_sizes=sizes)
    transformers_rope_index(prompt)
    for by_types in (False, True):
        with pytest.raises(ValueError, match=r"target_sizes row|token 0"):
            rope_index(prompt, by_types=by_types)


def test_transformers_alone_answers_crops_that_touch():
    prompt = Prompt.from_symbols(
        minicpm_spec("transformers"),
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
    prompt = Prompt.from_symbols(
        minicpm_spec("transformers"), ["t(I)t"], target_sizes=[[0, 0], [4, 4]]
    )
    with pytest.raises(RuntimeError, match=r"must match|expanded size"):
        transformers_rope_index(prompt)
    assert_same(rope_index(prompt), prompt.expected())


def test_the_reference_takes_every_rule_of_a_spec():
    from vecrope.testing.reference.minicpmv4_7 import get_rope_index as reference

    tensors = {"input_ids", "target_sizes", "target_sizes_videos"}
    tensors |= {"attention_mask", "mm_token_type_ids"}
    parameters = set(inspect.signature(reference).parameters)
    assert set(minicpm_rules(minicpm_spec("sglang"))) == parameters - tensors
