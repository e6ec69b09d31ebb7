import contextlib
import itertools
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from oracles import each_rule

from vecrope import MRopeSpec
from vecrope.families.rules import OwnRule
from vecrope.testing import Prompt, Refusal, assert_matches, conversations, token_soup

SGLANG = MRopeSpec.for_model("glm4v", convention="sglang")
TRANSFORMERS = MRopeSpec.for_model("glm4v", convention="transformers")
QWEN2_5 = {
    convention: MRopeSpec.for_model("qwen2_5_vl", convention=convention)
    for convention in ("transformers", "sglang", "vllm")
}
QWEN3 = {
    convention: MRopeSpec.for_model("qwen3_vl", convention=convention)
    for convention in ("transformers", "sglang", "vllm")
}
ERNIE = MRopeSpec.for_model("ernie4_5_vl_moe", convention="sglang")
SPECS = pytest.mark.parametrize("spec", [SGLANG, TRANSFORMERS], ids=lambda spec: spec.convention)

FIND = settings(max_examples=2000, database=None, derandomize=True)
smallest = partial(find, settings=FIND)
any_such = partial(find, settings=settings(FIND, max_examples=5000, phases=[Phase.generate]))


def masks(prompt):
    if prompt.attention_mask is None:
        return ["1" * len(row) for row in prompt.symbols]
    return ["".join(map(str, row)) for row in prompt.attention_mask.tolist()]


def unmasked(prompt):
    return [
        "".join(symbol for symbol, value in zip(row, mask, strict=True) if value == "1")
        for row, mask in zip(prompt.symbols, masks(prompt), strict=True)
    ]


def masked(prompt):
    return "".join(
        symbol
        for row, mask in zip(prompt.symbols, masks(prompt), strict=True)
        for symbol, value in zip(row, mask, strict=True)
        if value == "0"
    )


def grids(prompt):
    both = (prompt.image_grid_thw, prompt.video_grid_thw)
    return tuple([] if grid_thw is None else grid_thw.tolist() for grid_thw in both)


def any_row(pattern, rows):
    return any(re.search(pattern, row) for row in rows)


def refusal(prompt):
    try:
        prompt.expected()
    except Refusal as error:
        return str(error)
    return ""


ANYWHERE = {
    "one token": lambda p: p.symbols == ["t"],
    "several rows": lambda p: len(p.symbols) > 1,
    "an image": lambda p: len(grids(p)[0]) == 1,
    "several images": lambda p: len(grids(p)[0]) > 1,
    "an image over several frames": lambda p: any(t > 1 for t, _, _ in grids(p)[0]),
    "an image longer than high and wide": lambda p: any(
        t > max(h, w) // 2 for t, h, w in grids(p)[0]
    ),
    "a wide image": lambda p: any(h == 2 < w for _, h, w in grids(p)[0]),
    "a tall image": lambda p: any(h > 2 == w for _, h, w in grids(p)[0]),
    "an image with several lines": lambda p: any(min(h, w) > 2 for _, h, w in grids(p)[0]),
    "a video": lambda p: len(grids(p)[1]) == 1,
    "a video of several frames": lambda p: any(t > 1 for t, _, _ in grids(p)[1]),
    "two videos": lambda p: len(grids(p)[1]) == 2,
    "an image and a video": lambda p: all(grids(p)),
    "an image row after an image row": lambda p: sum("I" in row for row in unmasked(p)) > 1,
    "a text row among image rows": lambda p: {"I" in row for row in p.symbols} == {True, False},
    "no mask": lambda p: p.attention_mask is None,
    "a mask without padding": lambda p: p.attention_mask is not None and masked(p) == "",
    "left padding": lambda p: any_row("^0+1+$", masks(p)),
    "right padding": lambda p: any_row("^1+0+$", masks(p)),
    "padding on both sides": lambda p: any_row("^0+1+0+$", masks(p)),
}

SOUP = {
    "a hole in the mask": lambda p: any_row("10+1", masks(p)),
    "a hole that joins two runs": lambda p: any(
        longest_run(left) > longest_run(row)
        for row, left in zip(p.symbols, unmasked(p), strict=True)
    ),
    "a masked placeholder": lambda p: "I" in masked(p),
    "a masked start": lambda p: "[" in masked(p),
    "a masked end": lambda p: "]" in masked(p),
    "two starts in a row": lambda p: any_row(r"\[[^\]]*\[I", unmasked(p)),
    "an end before any start": lambda p: any_row(r"^[^\[]*\].*\[I", unmasked(p)),
    "a video that is never closed": lambda p: any_row(r"\[[^\]]*I[^\]]*$", unmasked(p)),
    "the marker rules disagree": lambda p: (
        not torch.equal(p.mm_token_type_ids, other_rule(p).mm_token_type_ids)
    ),
    "a row without tokens": lambda p: "" in unmasked(p),
    "a row without tokens between rows with images": lambda p: (
        ["I" in row for row in unmasked(p)] == [True, False, True] and unmasked(p)[1] == ""
    ),
    "a video over two rows": lambda p: any(
        row_end not in video_ends(p) for row_end in itertools.accumulate(frames_in_rows(p))
    ),
    "an empty grid tensor": lambda p: p.image_grid_thw is not None and not len(p.image_grid_thw),
}


def other_rule(prompt):
    other = TRANSFORMERS if prompt.spec == SGLANG else SGLANG
    return Prompt.from_symbols(other, prompt.symbols, mask=masks(prompt))


def longest_run(row):
    return max(map(len, re.findall("I+", row)), default=0)


def frames_in_rows(prompt):
    types = zip(prompt.mm_token_type_ids.tolist(), masks(prompt), strict=True)
    kept = (
        [kind for kind, value in zip(row, mask, strict=True) if value == "1"] for row, mask in types
    )
    return [sum(kind == 2 for kind, _ in itertools.groupby(row)) for row in kept]


def video_ends(prompt):
    return list(itertools.accumulate((t for t, _, _ in grids(prompt)[1]), initial=0))


def never_drawn(strategy, features):
    """Return the names of the features that no prompt of one search has."""
    missing = dict(features)

    def is_last(prompt):
        for name in [name for name, feature in missing.items() if feature(prompt)]:
            del missing[name]
        return not missing

    with contextlib.suppress(NoSuchExample):
        any_such(strategy, is_last)
    return [*missing]


def test_what_is_never_drawn_is_named():
    features = {"a prompt": lambda p: p.symbols, "no prompt": lambda p: not p.symbols}
    prompts = st.just(Prompt.from_symbols(SGLANG, ["t"]))
    assert never_drawn(prompts, features) == ["no prompt"]


@pytest.mark.parametrize("strategy", [conversations, token_soup], ids=lambda s: s.__name__)
def test_both_strategies_draw_every_feature(strategy):
    assert never_drawn(strategy(SGLANG), ANYWHERE) == []


@pytest.mark.parametrize(
    ("spec", "pattern"),
    [
        pytest.param(SGLANG, r"\[<II+>t+<II+>t+\]", id="frames before their timestamps"),
        pytest.param(QWEN3["transformers"], "t+<VV+>t+<VV+>", id="frames behind their timestamps"),
        pytest.param(QWEN3["sglang"], "t+<VV+>t+<VV+>", id="the same with a marker of its own"),
        pytest.param(QWEN2_5["transformers"], "<VV+><II+>", id="a block and an image"),
        pytest.param(ERNIE, r"\[II+\]<II+>", id="a block between markers and an image"),
    ],
)
def test_videos_are_laid_out_as_the_family_does(spec, pattern):
    assert any_such(conversations(spec), lambda prompt: any_row(pattern, unmasked(prompt)))


TIMES = {
    "no seconds": lambda p: p.second_per_grid_ts is None,
    "a list": lambda p: isinstance(p.second_per_grid_ts, list) and p.second_per_grid_ts,
    "float32": lambda p: dtype_of_seconds(p) == torch.float32,
    "float64": lambda p: dtype_of_seconds(p) == torch.float64,
    "a video whose frames are more than a position apart": lambda p: gap(p) > 1,
    "a video whose frames share a position": lambda p: gap(p) == 0,
}


def dtype_of_seconds(prompt):
    seconds = prompt.second_per_grid_ts
    return seconds.dtype if torch.is_tensor(seconds) and len(seconds) else None


def gap(prompt):
    """Return the positions between the first two frames of a prompt of one video, and -1 else."""
    images, videos = grids(prompt)
    if images or len(videos) != 1 or videos[0][0] == 1 or videos[0][1:] != [2, 2]:
        return -1
    times = prompt.expected()[0][0][prompt.mm_token_type_ids == 2]
    return int(times[1] - times[0])


@pytest.mark.parametrize("strategy", [conversations, token_soup], ids=lambda s: s.__name__)
def test_both_strategies_draw_seconds(strategy):
    # One row of one piece, so that a video on its own is not rare.
    small = {"max_segments": 1} if strategy is conversations else {"max_pieces": 2}
    prompts = strategy(QWEN2_5["transformers"], max_rows=1, **small)
    assert never_drawn(prompts.filter(lambda p: bool(grids(p)[1])), TIMES) == []


@pytest.mark.parametrize("strategy", [conversations, token_soup], ids=lambda s: s.__name__)
def test_both_strategies_draw_frames_that_are_left_over_in_merging(strategy):
    assert any_such(strategy(ERNIE), lambda p: any(t > 2 and t % 2 for t, _, _ in grids(p)[1]))


@pytest.mark.parametrize("strategy", [conversations, token_soup], ids=lambda s: s.__name__)
def test_images_have_one_frame_where_the_family_asks_for_it(strategy):
    @given(strategy(QWEN3["vllm"]))
    def check(prompt):
        assert all(t == 1 for t, _, _ in grids(prompt)[0])

    check()


@pytest.mark.parametrize(
    "message",
    [
        "has no vision_start_token_id right before image_grid_thw",
        "has no vision_start_token_id right before video_grid_thw",
        "second_per_grid_ts must hold",
        "second_per_grid_ts must be finite and not negative",
    ],
)
def test_misfitting_soup_of_other_families_is_refused_in_every_way(message):
    strategy = token_soup(QWEN2_5["sglang"], fit=False)
    assert any_such(strategy, lambda prompt: re.search(message, refusal(prompt)))


@pytest.mark.parametrize("strategy", [conversations, token_soup], ids=lambda s: s.__name__)
def test_a_family_without_placeholders_has_text_only(strategy):
    @given(strategy(MRopeSpec.for_model("qwen3_asr", convention="sglang")))
    def check(prompt):
        assert set("".join(prompt.symbols)) <= {"t", "<", ">", "[", "]"}
        assert not any(grids(prompt))

    check()


def test_conversations_pad_rows_on_different_sides():
    def on_different_sides(prompt):
        return any_row("^0+1+$", masks(prompt)) and any_row("^1+0+$", masks(prompt))

    assert any_such(conversations(SGLANG), on_different_sides)


@SPECS
def test_soup_draws_every_feature(spec):
    assert never_drawn(token_soup(spec), SOUP) == []


def runs_and_items(prompt):
    runs = sum(len(re.findall("I+", row)) for row in unmasked(prompt))
    images, videos = grids(prompt)
    return runs, len(images) + sum(t for t, _, _ in videos)


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("strategy", [conversations, token_soup], ids=lambda s: s.__name__)
def test_touching_items_are_drawn_on_request(strategy, kind):
    def touching(prompt):
        runs, items = runs_and_items(prompt)
        return runs < items and bool(grids(prompt)[kind == "video"])

    assert any_such(strategy(SGLANG, touching=True), touching)


@SPECS
@pytest.mark.parametrize("strategy", [conversations, token_soup], ids=lambda s: s.__name__)
def test_touching_items_are_not_drawn_otherwise(strategy, spec):
    @given(strategy(spec))
    def check(prompt):
        runs, items = runs_and_items(prompt)
        assert runs == items

    check()


@pytest.mark.parametrize("index", [0, 1], ids=["image", "video"])
def test_grids_of_zeros_are_drawn_on_request(index):
    def zeros_before_an_item(prompt):
        given = grids(prompt)[index]
        return [0, 0, 0] in given[:-1] and given[-1] != [0, 0, 0]

    assert any_such(token_soup(SGLANG, zero_grids=True), zeros_before_an_item)


@pytest.mark.parametrize(
    "message",
    [
        "that no grid of image_grid_thw is left for",
        "that no grid of video_grid_thw is left for",
        r"ends a run inside image_grid_thw",
        r"ends a run inside video_grid_thw",
        r"image_grid_thw\[\d+\] = .* is left over",
        r"video_grid_thw\[\d+\] = .* is left over",
        "must be positive throughout",
        "divisible by spatial_merge_size",
    ],
)
def test_misfitting_soup_is_refused_in_every_way(message):
    def refused(prompt):
        return re.search(message, refusal(prompt))

    assert any_such(token_soup(SGLANG, fit=False), refused)


def test_misfitting_soup_is_at_times_accepted():
    def accepted(prompt):
        return any(grids(prompt)) and refusal(prompt) == ""

    assert any_such(token_soup(SGLANG, fit=False), accepted)


@each_rule
@pytest.mark.parametrize(
    "strategy",
    [
        conversations,
        partial(conversations, touching=True),
        token_soup,
        partial(token_soup, touching=True, zero_grids=True),
    ],
    ids=["conversations", "touching conversations", "soup", "touching soup with zeros"],
)
def test_the_reference_accepts(strategy, spec):
    @given(strategy(spec))
    def check(prompt):
        position_ids, rope_deltas = prompt.expected()
        assert position_ids.dtype == rope_deltas.dtype == torch.int64
        assert position_ids.shape == (3, *prompt.input_ids.shape)
        assert rope_deltas.shape == (len(prompt.input_ids), 1)

    check()


@pytest.mark.parametrize(
    "strategy",
    [
        conversations(SGLANG),
        conversations(SGLANG, touching=True),
        token_soup(SGLANG),
        token_soup(SGLANG, fit=False, touching=True, zero_grids=True),
    ],
    ids=["conversations", "touching conversations", "soup", "misfitting soup"],
)
def test_shrinks_to_one_text_token(strategy):
    found = smallest(strategy, lambda _: True)
    assert repr(found) == repr(Prompt.from_symbols(SGLANG, ["t"]))


@each_rule
def test_a_prompts_repr_builds_it_again(spec):
    @given(token_soup(spec, fit=False))
    def check(prompt):
        names = {"Prompt": Prompt, "MRopeSpec": MRopeSpec, "torch": torch}
        again = eval(repr(prompt), names)
        assert again.spec == prompt.spec
        assert repr(again) == repr(prompt)
        for name, value in prompt.arguments().items():
            other = again.arguments()[name]
            assert type(value) is type(other)
            if torch.is_tensor(value):
                assert value.dtype == other.dtype
                assert value.allclose(other, 0, 0, equal_nan=True)
            else:
                assert repr(value) == repr(other)

    check()


@pytest.mark.parametrize(
    "changes", [{"spatial_merge_size": 3}, {"model_type": "unheard_of"}], ids=["changed", "unknown"]
)
def test_a_prompts_repr_shows_an_uncommon_spec_in_full(changes):
    spec = MRopeSpec(**{**vars(SGLANG), **changes})
    prompt = Prompt.from_symbols(spec, ["tt"], mask=["01"])
    assert repr(prompt) == f"Prompt.from_symbols({spec!r}, ['tt'], mask=['01'])"


def test_text_ids_keep_clear_of_the_specs():
    ids = {"image_token_id": 0, "video_start_token_id": 1, "video_end_token_id": 3}
    spec = MRopeSpec(**{**vars(SGLANG), **ids})
    prompt = Prompt.from_symbols(spec, ["t<>I[]"])
    assert prompt.input_ids.tolist() == [[2, 4, 5, 0, 1, 3]]
    assert prompt.symbols == ["t<>I[]"]


def test_ids_of_every_kind_have_their_symbols():
    prompt = Prompt.from_symbols(QWEN3["sglang"], ["t<>IV[]"])
    assert prompt.input_ids.tolist() == [[0, 151652, 1, 151655, 151656, 2, 3]]
    assert prompt.symbols == ["t<>IV[]"]


def test_a_prompt_without_videos_of_its_own_has_no_symbol_of_them():
    with pytest.raises(KeyError, match="V"):
        Prompt.from_symbols(SGLANG, ["V"])


def test_types_are_read_off_masked_tokens_too_where_the_mask_is_ignored():
    prompt = Prompt.from_symbols(QWEN3["sglang"], ["<I<V"], mask=["1011"])
    assert prompt.mm_token_type_ids.tolist() == [[0, 1, 0, 2]]


def test_a_family_with_a_rule_of_its_own_has_another_reference():
    spec = replace(SGLANG, own_rule=OwnRule())
    with pytest.raises(ValueError, match="'glm4v' is numbered by a rule of its own under conv"):
        Prompt.from_symbols(spec, ["t"]).expected()


def test_positions_are_of_the_dtype_of_the_spec():
    for spec, dtype in ((SGLANG, torch.int32), (QWEN3["vllm"], torch.int64)):
        prompt = Prompt.from_symbols(spec, ["t"])
        narrow = replace(prompt, input_ids=prompt.input_ids.int())
        assert narrow.expected()[0].dtype == dtype


def test_foreign_ids_are_shown_as_text():
    prompt = Prompt.from_symbols(SGLANG, ["tt"])
    prompt.input_ids[0, 1] = 77
    assert prompt.symbols == ["tt"]


def test_types_are_read_off_unmasked_tokens():
    prompt = Prompt.from_symbols(SGLANG, ["[I]I", "[I]I"], mask=["1111", "0111"])
    assert prompt.mm_token_type_ids.tolist() == [[0, 2, 0, 1], [0, 1, 0, 1]]


# assert_matches


def answer(prompt):
    return lambda **_: tuple(tensor.clone() for tensor in prompt.expected())


PROMPT = Prompt.from_symbols(
    SGLANG, ["ttt", "tII"], mask=["111", "011"], image_grid_thw=[[1, 2, 4]]
)


def test_a_right_answer_matches():
    assert_matches(answer(PROMPT), PROMPT)


def test_the_function_gets_the_prompts_arguments():
    def function(*, input_ids, mm_token_type_ids, image_grid_thw, video_grid_thw, attention_mask):
        assert input_ids is PROMPT.input_ids
        assert mm_token_type_ids is PROMPT.mm_token_type_ids
        assert image_grid_thw is PROMPT.image_grid_thw
        assert video_grid_thw is None
        assert attention_mask is PROMPT.attention_mask
        return PROMPT.expected()

    assert_matches(function, PROMPT)


def shifted(index, value):
    position_ids, rope_deltas = PROMPT.expected()
    (position_ids if len(index) == 3 else rope_deltas)[index] += value
    return position_ids, rope_deltas


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param(
            lambda: shifted((2, 1, 2), 5),
            r"position_ids differ in row 1, first at token 2, axis W: expected 1, got 6\n"
            r"  expected \[1, 0, 1\]\n"
            r"  got      \[1, 0, 6\]\n"
            r"for Prompt\.from_symbols\(.*\['ttt', 'tII'\], mask=",
            id="a position",
        ),
        pytest.param(
            lambda: shifted((slice(None), 0, slice(1, 3)), 1),
            r"row 0, first at token 1, axis T: expected 1, got 2",
            id="several positions",
        ),
        pytest.param(
            lambda: shifted((1, 0), 1),
            r"rope_deltas differ in row 1: expected -1, got 0\nfor Prompt",
            id="a delta",
        ),
        pytest.param(
            lambda: (PROMPT.expected()[0].int(), PROMPT.expected()[1]),
            r"position_ids must have dtype torch.int64, got torch.int32",
            id="dtype of positions",
        ),
        pytest.param(
            lambda: (PROMPT.expected()[0], PROMPT.expected()[1].float()),
            r"rope_deltas must have dtype torch.int64, got torch.float32",
            id="dtype of deltas",
        ),
        pytest.param(
            lambda: (PROMPT.expected()[0][:, :1], PROMPT.expected()[1]),
            r"position_ids must have shape \(3, 2, 3\), got \(3, 1, 3\)",
            id="shape of positions",
        ),
        pytest.param(
            lambda: (PROMPT.expected()[0], PROMPT.expected()[1][:, 0]),
            r"rope_deltas must have shape \(2, 1\), got \(2,\)",
            id="shape of deltas",
        ),
    ],
)
def test_a_wrong_answer_is_described(wrong, message):
    with pytest.raises(AssertionError, match=message):
        assert_matches(lambda **_: wrong(), PROMPT)


def test_an_exception_where_the_reference_answers_is_passed_on():
    def function(**_):
        raise IndexError("too far")

    with pytest.raises(IndexError, match="too far"):
        assert_matches(function, PROMPT)


def test_where_the_reference_refuses_the_function_has_to_raise():
    refused = Prompt.from_symbols(SGLANG, ["I"])

    def function(**_):
        raise IndexError("too far")

    assert_matches(function, refused)
    with pytest.raises(
        AssertionError,
        match=r"the reference refuses this prompt \(row 0 has 1 tokens that no grid of "
        r"image_grid_thw is left for\) and the function does not raise\nfor Prompt",
    ):
        assert_matches(answer(PROMPT), refused)


def test_left_over_grids_are_refused_or_ignored():
    prompt = Prompt.from_symbols(SGLANG, ["t"], image_grid_thw=[[1, 2, 2]])
    positions = torch.zeros(3, 1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(AssertionError, match="left over"):
        assert_matches(lambda **_: positions, prompt)
    assert_matches(lambda **_: positions, prompt, allow_left_over=True)


# An upstream


def transformers_rope_index(**arguments):
    from transformers.models.glm4v.modeling_glm4v import Glm4vModel

    vision = SimpleNamespace(spatial_merge_size=TRANSFORMERS.spatial_merge_size)
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=vision),
        get_vision_position_ids=partial(Glm4vModel.get_vision_position_ids, None),
    )
    return Glm4vModel.get_rope_index(model, **arguments)


@given(prompt=conversations(TRANSFORMERS))
def test_transformers_matches(prompt):
    assert_matches(transformers_rope_index, prompt)


@given(prompt=token_soup(TRANSFORMERS).filter(lambda prompt: "" not in unmasked(prompt)))
def test_transformers_matches_on_soup(prompt):
    assert_matches(transformers_rope_index, prompt)


def test_transformers_fails_on_touching_images():
    def differs(prompt):
        return not matches(transformers_rope_index, prompt)

    found = smallest(conversations(TRANSFORMERS, touching=True), differs)
    assert found.symbols == ["<II>"]
    assert grids(found) == ([[1, 2, 2], [1, 2, 2]], [])


# Planted bugs


def matches(function, prompt):
    try:
        assert_matches(function, prompt)
    except Exception:
        return False
    return True


def small_rope_index(
    input_ids,
    mm_token_type_ids,
    image_grid_thw,
    video_grid_thw,
    attention_mask,
    *,
    span=max,
    per_row=False,
    masking=True,
):
    """Answer well-formed prompts under transformers' convention; the last three plant bugs."""
    frames = (
        [] if video_grid_thw is None else video_grid_thw.repeat_interleave(video_grid_thw[:, 0], 0)
    )
    items = {1: [] if image_grid_thw is None else image_grid_thw.tolist()}
    items[2] = [[1, h, w] for _, h, w in (frame.tolist() for frame in frames)]
    position_ids = torch.zeros(3, *input_ids.shape, dtype=torch.int64)
    rope_deltas = torch.zeros(len(input_ids), 1, dtype=torch.int64)
    pending = {kind: iter(grid_thw) for kind, grid_thw in items.items()}
    for row, types in enumerate(mm_token_type_ids):
        if per_row:
            pending = {kind: iter(grid_thw) for kind, grid_thw in items.items()}
        kept = torch.ones_like(types).bool()
        if attention_mask is not None and masking:
            kept = attention_mask[row].bool()
        blocks = []
        start = 0
        for kind, run in itertools.groupby(types[kept].tolist()):
            if kind == 0:
                length = len(list(run))
                blocks.append(torch.arange(length).expand(3, -1) + start)
                start += length
            else:
                t, h, w = next(pending[kind])
                blocks.append(
                    torch.cartesian_prod(*map(torch.arange, (t, h // 2, w // 2))).T + start
                )
                start += span(h // 2, w // 2)
        position_ids[:, row, kept] = torch.cat(blocks, dim=1)
        rope_deltas[row] = position_ids[:, row, kept].max() + 1 - kept.sum()
    return position_ids, rope_deltas


@given(prompt=conversations(TRANSFORMERS))
def test_the_function_the_bugs_are_planted_in_matches(prompt):
    assert_matches(small_rope_index, prompt)


@pytest.mark.parametrize(
    ("bug", "shape"),
    [
        pytest.param({"span": lambda h, w: max(h, w) + 1}, (1, 3), id="a span one too large"),
        pytest.param({"span": lambda _, w: w}, (1, 4), id="a span that forgets the height"),
        pytest.param({"per_row": True}, (2, 4), id="a counter reset in each row"),
        pytest.param({"masking": False}, (1, 2), id="a forgotten mask"),
    ],
)
def test_a_planted_bug_is_shrunk_to_a_few_tokens(bug, shape):
    buggy = partial(small_rope_index, **bug)
    found = smallest(conversations(TRANSFORMERS), lambda prompt: not matches(buggy, prompt))
    assert found.input_ids.shape == shape


def test_given_reports_the_smallest_prompt():
    buggy = partial(small_rope_index, masking=False)

    @settings(database=None, derandomize=True)
    @given(prompt=conversations(TRANSFORMERS))
    def check(prompt):
        assert_matches(buggy, prompt)

    with pytest.raises(AssertionError) as failure:
        check()
    smallest_prompt = Prompt.from_symbols(TRANSFORMERS, ["tt"], mask=["10"])
    assert f"prompt={smallest_prompt!r}" in "\n".join(failure.value.__notes__)


# Without hypothesis


def run(code):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True
    ).stdout


WITHOUT_HYPOTHESIS = "import sys; sys.modules['hypothesis'] = None\n"


def test_only_the_strategies_load_hypothesis():
    assert run(
        """
        import sys, vecrope.testing.reference
        from vecrope.testing import Prompt, assert_matches
        print("hypothesis" in sys.modules)
        from vecrope.testing import conversations
        print("hypothesis" in sys.modules)
        """
    ).split() == ["False", "True"]


def test_the_library_does_not_load_its_testing():
    assert run("import sys, vecrope; print('vecrope.testing' in sys.modules)").split() == ["False"]


def test_a_missing_hypothesis_is_named():
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run(f"{WITHOUT_HYPOTHESIS}from vecrope.testing import token_soup")
    message = "ImportError: vecrope.testing.token_soup needs hypothesis: pip install 'vecrope[testi"
    assert message in failure.value.stderr


def without(monkeypatch, module):
    """Make a module impossible to import, and the strategies not imported yet."""
    import vecrope.testing

    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "vecrope.testing.strategies", raising=False)
    monkeypatch.delattr(vecrope.testing, "strategies", raising=False)
    return vecrope.testing


def test_a_missing_hypothesis_is_named_in_this_process(monkeypatch):
    testing = without(monkeypatch, "hypothesis")
    with pytest.raises(ImportError, match=r"needs hypothesis: pip install 'vecrope\[testing\]'"):
        testing.conversations  # noqa: B018


def test_another_missing_module_is_passed_on(monkeypatch):
    testing = without(monkeypatch, "vecrope.testing.reference")
    with pytest.raises(ModuleNotFoundError, match=r"vecrope\.testing\.reference"):
        testing.conversations  # noqa: B018


def test_an_unknown_name_is_an_attribute_error():
    import vecrope.testing

    with pytest.raises(AttributeError, match=r"module 'vecrope\.testing' has no attribute 'soup'"):
        vecrope.testing.soup  # noqa: B018
