"""The strategies: every feature really occurs, and prompts shrink to one text token."""

import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import each_rule

from tests.testing.searching import (
    ANYWHERE,
    QWEN2_5,
    QWEN3,
    SGLANG,
    SOUP,
    TRANSFORMERS,
    any_row,
    any_such,
    grids,
    masks,
    never_drawn,
    smallest,
    unmasked,
)
from vecrope import MRopeSpec
from vecrope.testing import Prompt, Refusal, conversations, token_soup

ERNIE = MRopeSpec.for_model("ernie4_5_vl_moe", convention="sglang")
SPECS = pytest.mark.parametrize("spec", [SGLANG, TRANSFORMERS], ids=lambda spec: spec.convention)


def refusal(prompt):
    try:
        prompt.expected()
    except Refusal as error:
        return str(error)
    return ""


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
