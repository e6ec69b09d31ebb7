import random
import sys
from dataclasses import replace
from itertools import accumulate, count
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import (
    CONVENTIONS,
    FITTING,
    assert_same,
    choose_rows,
    fitting,
    grid_list,
    grid_tensor,
    kept,
    misfitting,
    rope_index,
    spec_of,
)

from vecrope import get_rope_index
from vecrope.forms.select import fused_pipeline
from vecrope.regular import regular_rope_index
from vecrope.short import short_rope_index
from vecrope.testing import Prompt, Refusal

SPECS = {convention: spec_of("glm4v", convention) for convention in CONVENTIONS}
OTHERS = {
    **{f"glm46v-{convention}": spec_of("glm46v", convention) for convention in CONVENTIONS},
    # No upstream has these rules; they tell the fields of a spec apart.
    "thirds": replace(
        spec_of("glm_ocr", "sglang"),
        image_token_id=0,
        video_start_token_id=2,
        video_end_token_id=1,
        spatial_merge_size=3,
        span_rule="hw",
        padding_value=5,
    ),
    "ids far apart": replace(
        spec_of("glm4v", "transformers"),
        image_token_id=100,
        video_start_token_id=300_000,
        video_end_token_id=7,
    ),
    "unmerged": replace(
        spec_of("glm4v_moe", "transformers"),
        spatial_merge_size=1,
        span_rule="thw",
        padding_value=-7,
    ),
}


def anything(spec):
    return fitting(spec) | misfitting(spec)


def parametrize(name, values):
    return pytest.mark.parametrize(name, values.values(), ids=values.keys())


each_convention = parametrize("spec", SPECS)


def without_short(*args, **arguments):
    with mock.patch("vecrope.rope_index.short_rope_index", return_value=None):
        return get_rope_index(*args, **arguments)


def table_rope_index(*args, **arguments):
    with mock.patch("vecrope.rope_index.regular_rope_index", return_value=None):
        return without_short(*args, **arguments)


def by_bytes(*args, **arguments):
    with (
        mock.patch("vecrope.short._BYTES_FROM", 0),
        mock.patch("vecrope.core.modality._WORDS_FROM", 0),
        mock.patch("vecrope.rope_index.regular_rope_index", return_value=None),
    ):
        return get_rope_index(*args, **arguments)


def static_rope_index(input_ids, spec, **arguments):
    return get_rope_index(input_ids, spec, form="static", **arguments)


UNSEEN = count(1)

FORMS = {
    "all fast paths": get_rope_index,
    "bytes": by_bytes,
    "fast path": without_short,
    "table": table_rope_index,
    "static": static_rope_index,
}
each_form = parametrize("form", FORMS)


# The forms, and the loop


@pytest.mark.parametrize(
    ("spec", "strategy"),
    [
        pytest.param(SPECS[convention], strategy, id=f"glm4v-{convention}-{name}")
        for convention in CONVENTIONS
        for name, strategy in {**FITTING, "misfitting soup": misfitting}.items()
    ]
    + [pytest.param(spec, anything, id=f"{name}-anything") for name, spec in OTHERS.items()],
)
def test_every_form_equals_the_loop_or_both_refuse(spec, strategy):
    @given(strategy(spec))
    def check(prompt):
        try:
            expected = prompt.expected()
        except Refusal:
            messages = set()
            for form in FORMS.values():
                with pytest.raises(ValueError, match="grid") as error:
                    rope_index(prompt, form)
                messages.add(str(error.value))
            assert len(messages) == 1
            return
        for form in FORMS.values():
            assert_same(rope_index(prompt, form), expected)
        assert_same(rope_index(prompt, static_rope_index, validate=False), expected)

    check()


@each_convention
@each_form
@pytest.mark.parametrize(
    ("row", "grids"),
    [
        pytest.param("II", {"image_grid_thw": [[1, 2, 2]]}, id="an image"),
        pytest.param("ItII", {"image_grid_thw": [[1, 2, 2]] * 2}, id="a second image"),
        pytest.param("IIIt", {"image_grid_thw": [[1, 2, 4]]}, id="an image in part"),
        pytest.param("[ItII]", {"video_grid_thw": [[2, 2, 2]]}, id="a frame"),
    ],
)
def test_a_run_longer_than_the_last_grid_is_refused(row, grids, form, spec):
    with pytest.raises(ValueError, match="grid"):
        rope_index(Prompt.from_symbols(spec, [row], **grids), form)


@each_convention
def test_types_replace_the_ids(spec):
    ids = [*_special_ids(spec), 11]

    @given(fitting(spec), st.integers(0, 2**32))
    def check(prompt, seed):
        rng = torch.Generator().manual_seed(seed)
        shape = prompt.input_ids.shape
        types = torch.where(
            kept(prompt), prompt.mm_token_type_ids, torch.randint(3, shape, generator=rng)
        )
        misleading = torch.tensor(ids)[torch.randint(len(ids), shape, generator=rng)]
        for form in FORMS.values():
            answer = rope_index(prompt, form, input_ids=misleading, mm_token_type_ids=types)
            assert_same(answer, prompt.expected())

    check()


@each_form
@each_convention
def test_types_are_believed_where_the_ids_would_fit_as_well(spec, form):
    prompt = Prompt.from_symbols(spec, ["tttIIIIt"], image_grid_thw=[[1, 4, 4]])
    ids = Prompt.from_symbols(spec, ["tIIIIttt"]).input_ids
    types = prompt.mm_token_type_ids
    answer = rope_index(prompt, form, input_ids=ids, mm_token_type_ids=types)
    assert_same(answer, prompt.expected())


@each_convention
def test_misfits_that_are_not_checked_get_an_answer_of_the_right_form(spec):
    @given(misfitting(spec), st.booleans())
    def check(prompt, as_types):
        types = prompt.mm_token_type_ids if as_types else None
        position_ids, rope_deltas = rope_index(
            prompt, static_rope_index, validate=False, mm_token_type_ids=types
        )
        assert position_ids.shape == (3, *prompt.input_ids.shape)
        assert rope_deltas.shape == (len(prompt.input_ids), 1)

    check()


@pytest.mark.parametrize(
    ("takes_it", "rows", "arguments"),
    [
        pytest.param("short", ["tt"], {}, id="text"),
        pytest.param("short", ["t<II>"], {"image_grid_thw": [[1, 2, 4]]}, id="an image"),
        pytest.param(
            "short", ["t<II>"], {"image_grid_thw": [[1, 2, 4]], "mask": ["11111"]}, id="1"
        ),
        pytest.param("short", ["[It]"], {"video_grid_thw": [[1, 2, 2]]}, id="a video"),
        pytest.param(
            "short",
            ["IIt[IItIIt]IIt"],
            {"image_grid_thw": [[1, 4, 2]] * 2, "video_grid_thw": [[2, 4, 2]]},
            id="images and a video of one size",
        ),
        pytest.param(
            "regular",
            ["It[It][It]"],
            {"image_grid_thw": [[1, 2, 2]], "video_grid_thw": [[1, 2, 2]] * 2},
            id="two videos",
        ),
        pytest.param(
            "regular", ["ItIIt"], {"image_grid_thw": [[1, 2, 2], [1, 2, 4]]}, id="two sizes"
        ),
        pytest.param(
            "regular",
            ["It[IIt]"],
            {"image_grid_thw": [[1, 2, 2]], "video_grid_thw": [[1, 2, 4]]},
            id="an image and a frame of another size",
        ),
        pytest.param(
            "regular",
            ["IIt[IIt]".ljust(12, "t")],
            {"image_grid_thw": [[1, 2, 4]], "video_grid_thw": [[1, 4, 2]]},
            id="an image and a frame of its size turned over",
        ),
        pytest.param("regular", ["[It"], {"video_grid_thw": [[1, 2, 2]]}, id="a video left open"),
        pytest.param("regular", ["[[It"], {"video_grid_thw": [[1, 2, 2]]}, id="two starts"),
        pytest.param("regular", ["]It"], {"image_grid_thw": [[1, 2, 2]]}, id="a stray end"),
        pytest.param("regular", ["It", "tt"], {"image_grid_thw": [[1, 2, 2]]}, id="two rows"),
        pytest.param(
            "regular", ["[It", "[I]"], {"video_grid_thw": [[2, 2, 2]]}, id="a video over two rows"
        ),
        pytest.param(
            "regular", ["tIt"], {"image_grid_thw": [[1, 2, 2]], "mask": ["011"]}, id="padding"
        ),
        pytest.param("table", ["IIt"], {"image_grid_thw": [[1, 2, 2]] * 2}, id="touching images"),
        pytest.param(
            "table", ["IIt"], {"image_grid_thw": [[2, 2, 2]]}, id="an image of two frames"
        ),
        pytest.param("table", ["tI"], {"image_grid_thw": [[1, 2, 2]]}, id="an image at the end"),
        pytest.param("table", ["t"], {"image_grid_thw": [[0, 0, 0]]}, id="a grid of zeros"),
        pytest.param(
            "table",
            ["ItIt"],
            {"image_grid_thw": [[1, 2, 4]], "mask": ["1011"]},
            id="a hole in an image",
        ),
        pytest.param("table", ["IIt"], {"image_grid_thw": [[1, 4, 4]]}, id="a truncated image"),
        pytest.param(
            "table",
            ["I" * 9 + "t" * 3 + "It" * 9],
            {"image_grid_thw": [[1, 18, 2]] + [[1, 2, 2]] * 9},
            id="one frame much taller than the many others",
        ),
        pytest.param(
            "table",
            ["ItIIt"],
            {"video_grid_thw": [[9, 2, 2], [9, 2, 4]]},
            id="more frames than tokens",
        ),
        pytest.param(
            "regular", ["tt[", "tIt"], {"image_grid_thw": [[1, 2, 2]]}, id="a start before a row"
        ),
        pytest.param(
            "regular",
            ["[ttt", "tItt"],
            {"image_grid_thw": [[1, 2, 2]]},
            id="a start in another row",
        ),
    ],
)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_each_layout_takes_the_fastest_path_that_covers_it(takes_it, rows, arguments, convention):
    prompt = Prompt.from_symbols(spec_of("glm4v", convention), rows, **arguments)
    assert _path_taken(prompt) == takes_it
    with_types = "table" if takes_it == "table" else "regular"
    assert _path_taken(prompt, mm_token_type_ids=prompt.mm_token_type_ids) == with_types


def _path_taken(prompt, **changes):
    taken = []

    def spy(name, path):
        def call(*args):
            answer = path(*args)
            taken.append(name if answer is not None else "table")
            return answer

        return mock.patch(f"vecrope.rope_index.{path.__name__}", call)

    with spy("short", short_rope_index), spy("regular", regular_rope_index):
        rope_index(prompt, validate=False, **changes)
    return taken[-1]


@each_form
@each_convention
def test_an_image_and_a_frame_of_as_many_tokens_keep_their_sides(spec, form):
    for image, frame in ([[1, 2, 4], [1, 4, 2]], [[1, 4, 2], [1, 2, 4]]):
        prompt = Prompt.from_symbols(
            spec, ["IIt[IIt]".ljust(12, "t")], image_grid_thw=[image], video_grid_thw=[frame]
        )
        assert_same(rope_index(prompt, form), prompt.expected())


@each_form
@each_convention
@pytest.mark.parametrize(
    ("row", "grids"),
    [
        pytest.param("tIt", {"image_grid_thw": [[1, 3, 2]]}, id="an odd height"),
        pytest.param("tIt", {"image_grid_thw": [[1, 2, 3]]}, id="an odd width"),
        pytest.param(
            "tItIIt", {"image_grid_thw": [[1, 3, 2], [1, 2, 4]]}, id="an odd height of one of two"
        ),
        pytest.param(
            "tItIIt", {"image_grid_thw": [[1, 2, 2], [1, 2, 5]]}, id="an odd width of one of two"
        ),
        pytest.param("ttt", {"image_grid_thw": [[1, 0, 2]]}, id="no height"),
        pytest.param("ttt", {"image_grid_thw": [[1, 2, 0]]}, id="no width"),
        pytest.param("tIt", {"image_grid_thw": [[1, -2, -2]]}, id="negative sides"),
        pytest.param(
            "It[]t", {"image_grid_thw": [[1, 2, 2]], "video_grid_thw": [[0, 2, 2]]}, id="no frame"
        ),
        pytest.param(
            "[ItIt][]t", {"video_grid_thw": [[2, 2, 2], [0, 2, 2]]}, id="no frame of a second video"
        ),
    ],
)
def test_a_faulty_grid_is_refused_though_the_tokens_would_fit_it(row, grids, form, spec):
    with pytest.raises(ValueError, match=r"must be positive|must have a height and width"):
        rope_index(Prompt.from_symbols(spec, [row], **grids), form)


@each_form
def test_a_grid_whose_tokens_would_wrap_to_one_is_refused(form):
    width = (3 * 2**64 + 1) // 7
    row, grids = "ItIt".ljust(40, "t"), [[1, 7, width], [1, 1, 1]]
    for rows in ([row], [row, "t" * 40]):
        prompt = Prompt.from_symbols(OTHERS["unmerged"], rows, image_grid_thw=grids)
        with pytest.raises(ValueError, match=r"fewer than 2\*\*30 tokens, row 0 \(1, 7"):
            rope_index(prompt, form)


@each_form
@each_convention
def test_text_inside_one_of_two_images_is_refused(spec, form):
    prompt = Prompt.from_symbols(spec, ["tItIttIIt"], image_grid_thw=[[1, 2, 4]] * 2)
    with pytest.raises(ValueError, match="row 0, image 0: its grid"):
        rope_index(prompt, form)


@each_form
@each_convention
def test_a_second_image_may_end_the_prompt(spec, form):
    prompt = Prompt.from_symbols(spec, ["tIItII"], image_grid_thw=[[1, 2, 4]] * 2)
    assert_same(rope_index(prompt, form), prompt.expected())


@each_form
@each_convention
def test_a_frame_between_two_ends_is_refused(spec, form):
    prompt = Prompt.from_symbols(spec, ["]It]"], video_grid_thw=[[1, 2, 2]])
    with pytest.raises(ValueError, match="row 0 holds image tokens beyond the last grid"):
        rope_index(prompt, form)


@each_form
@each_convention
def test_an_image_right_before_a_video_is_none_of_its_frames(spec, form):
    prompt = Prompt.from_symbols(spec, ["I[t]t"], video_grid_thw=[[1, 2, 2]])
    with pytest.raises(ValueError, match="row 0 holds image tokens beyond the last grid"):
        rope_index(prompt, form)


@each_form
@each_convention
def test_an_id_beyond_the_markers_is_none(spec, form):
    fields = {"image_token_id": 10, "video_start_token_id": 12, "video_end_token_id": 11}
    prompt = Prompt.from_symbols(replace(spec, **fields), ["tIt]"], video_grid_thw=[[1, 2, 2]])
    prompt.input_ids[0, 0] = 13
    with pytest.raises(ValueError, match="row 0 holds image tokens beyond the last grid"):
        rope_index(prompt, form)


@each_convention
@pytest.mark.parametrize("row", ["tIt", "tItIt]", "t[It]It"])
def test_the_path_of_few_placeholders_finds_them_by_bytes(spec, row, monkeypatch):
    monkeypatch.setattr("vecrope.short._BYTES_FROM", 0)
    images = row.count("I") - row.count("[")
    prompt = Prompt.from_symbols(
        spec,
        [row],
        image_grid_thw=[[1, 2, 2]] * images,
        video_grid_thw=[[1, 2, 2]] * row.count("["),
    )
    assert _path_taken(prompt) == "short"
    assert_same(rope_index(prompt), prompt.expected())


@each_convention
def test_the_path_of_few_placeholders_ends_where_it_says(spec, monkeypatch):
    monkeypatch.setattr("vecrope.short._FEW", 8)
    for images, seq_len, takes_it in (
        *((2, 80, "short"), (3, 80, "regular")),
        *((3, 32 * 12, "short"), (3, 32 * 12 - 1, "regular")),
    ):
        row = ("tIIII" * images).ljust(seq_len, "t")
        prompt = Prompt.from_symbols(spec, [row], image_grid_thw=[[1, 4, 4]] * images)
        assert _path_taken(prompt) == takes_it


@each_convention
def test_the_path_of_few_placeholders_takes_few_runs(spec, monkeypatch):
    monkeypatch.setattr("vecrope.short._BYTES_FROM", 0)
    monkeypatch.setattr("vecrope.short._MAX_RUNS", 6)
    prompt = Prompt.from_symbols(
        spec, ["ttt[It]ttt"], video_grid_thw=[[1, 2, 2]], image_grid_thw=[]
    )
    for above, takes_it in ((0, "short"), (1, "regular")):
        prompt.input_ids[0, :above] = max(spec.markers) + 1
        assert _path_taken(prompt) == takes_it
        assert_same(rope_index(prompt), prompt.expected())


def test_frames_of_one_patch_by_one_are_expanded():
    spec = OTHERS["unmerged"]
    row = "[ItIt][IIt]".ljust(20, "t")
    prompt = Prompt.from_symbols(spec, [row] * 2, video_grid_thw=[[2, 1, 1], [1, 1, 2]] * 2)
    assert _path_taken(prompt) == "regular"
    assert_same(rope_index(prompt), prompt.expected())


@each_form
@each_convention
@pytest.mark.parametrize(
    ("row", "grids"),
    [
        pytest.param("ItItIIt".ljust(20, "t"), [[2, 2, 2], [1, 2, 4]], id="among images"),
        pytest.param("It[It]", [[2, 2, 2]], id="the second in a video"),
        pytest.param("ItIt[It]", [[2, 2, 2], [1, 2, 2]], id="one run too many in a video"),
    ],
)
def test_an_image_in_two_runs_is_refused(row, grids, spec, form):
    prompt = Prompt.from_symbols(spec, [row], image_grid_thw=grids)
    with pytest.raises(ValueError, match=r"row 0, image 0: its grid|row 0 holds video tokens"):
        rope_index(prompt, form)


def test_an_end_before_its_start_is_not_for_the_path_of_short_prompts():
    spec = spec_of("glm4v", "sglang")
    prompt = Prompt.from_symbols(spec, ["][It"], video_grid_thw=[[1, 2, 2]])
    assert _path_taken(prompt) == "regular"
    assert_same(rope_index(prompt), prompt.expected())


def test_frames_outside_of_their_video_are_not_for_the_path_of_short_prompts():
    prompt = Prompt.from_symbols(spec_of("glm4v", "sglang"), ["It[t]"], video_grid_thw=[[1, 2, 2]])
    assert _path_taken(prompt) == "table"


def test_without_triton_there_are_no_kernels(monkeypatch):
    monkeypatch.setitem(sys.modules, "vecrope.forms.triton.launch", None)
    monkeypatch.delattr("vecrope.forms.triton.launch", raising=False)
    fused_pipeline.cache_clear()
    try:
        assert fused_pipeline() is None
    finally:
        fused_pipeline.cache_clear()


@each_form
@each_convention
def test_ids_that_share_their_last_byte_with_a_special_one_are_text(spec, form):
    prompt = Prompt.from_symbols(
        spec, ["t<II>tttt[It]t"] * 2, image_grid_thw=[[1, 2, 4]] * 2, video_grid_thw=[[2, 2, 2]]
    )
    ids = prompt.input_ids.clone()
    for row in range(2):
        ids[row, 5:8] = torch.tensor(_special_ids(spec)) + (256 if row else -256)
    assert_same(rope_index(prompt, form, input_ids=ids), prompt.expected())
    assert _path_taken(prompt, input_ids=ids) == "regular"


@each_form
def test_an_id_that_shares_its_last_byte_with_the_images_is_no_image(form):
    spec = OTHERS["ids far apart"]
    prompt = Prompt.from_symbols(spec, ["tIt"], image_grid_thw=[[1, 2, 2]])
    ids = torch.where(prompt.input_ids == spec.image_token_id, 256 + spec.image_token_id, 11)
    with pytest.raises(ValueError, match="image_grid_thw row 0"):
        rope_index(prompt, form, input_ids=ids)


@each_form
@each_convention
@parametrize(
    "special",
    {
        "of the family": None,
        "a byte apart": (1000, 1253, 1100),
        "less than a byte apart": (1000, 1252, 1100),
        "up to a multiple of 256": (250, 255, 253),
        "from a multiple of 256": (258, 300, 301),
        "soon after a multiple of 256": (261, 300, 301),
        "a byte apart from 0": (0, 255, 100),
        "across a multiple of 256": (257, 254, 256),
        "far apart": (100, 300_000, 7),
    },
)
@pytest.mark.parametrize("masked", [0, 1])
def test_ids_next_to_the_special_ones_are_text(masked, special, spec, form):
    image, start, end = special or _special_ids(spec)
    spec = replace(spec, image_token_id=image, video_start_token_id=start, video_end_token_id=end)
    near = {token_id + by for token_id in (image, start, end) for by in (-3, -2, -1, 1, 2, 3)}
    near = torch.tensor(sorted(near - {image, start, end}))
    row = "t" * len(near) + "It[It]"
    prompt = Prompt.from_symbols(
        spec,
        [row] * 2,
        mask=["0" * masked + "1" * (len(row) - masked)] * 2,
        image_grid_thw=[[1, 2, 2]] * 2,
        video_grid_thw=[[1, 2, 2]] * 2,
    )
    ids = prompt.input_ids.clone()
    ids[0, : len(near)] = near
    ids[1, : len(near)] = near.flip(0)
    assert_same(rope_index(prompt, form, input_ids=ids), prompt.expected())
    assert _path_taken(prompt, input_ids=ids) == "regular"


def _special_ids(spec):
    return spec.image_token_id, spec.video_start_token_id, spec.video_end_token_id


@each_form
@pytest.mark.parametrize("mask", ["111", "110"])
def test_types_of_single_bytes_are_left_as_they_were(form, mask):
    spec = spec_of("glm4v", "sglang")
    prompt = Prompt.from_symbols(spec, ["tIt"], mask=[mask], image_grid_thw=[[1, 2, 2]])
    types = prompt.mm_token_type_ids.to(torch.uint8)
    assert_same(rope_index(prompt, form, mm_token_type_ids=types), prompt.expected())
    assert torch.equal(types, prompt.mm_token_type_ids)


@each_form
@each_convention
def test_an_open_video_without_a_grid_is_refused(spec, form):
    for rows in (["[It"], ["[It", "ttt"]):
        prompt = Prompt.from_symbols(spec, rows, image_grid_thw=[[1, 2, 2]])
        with pytest.raises(ValueError, match="row 0 holds video tokens beyond the last grid"):
            rope_index(prompt, form)


@each_form
def test_a_long_prompt_is_answered_like_a_short_one(form):
    spec = spec_of("glm4v", "sglang")
    row = "tt" + "<IIII>t" * 2 + "[IIIItIIIIt]"
    row = row.ljust(40_001, "t")
    prompt = Prompt.from_symbols(
        spec, [row], image_grid_thw=[[1, 4, 4]] * 2, video_grid_thw=[[2, 4, 4]]
    )
    assert_same(rope_index(prompt, form), prompt.expected())


@each_form
def test_markers_are_counted_from_the_start_of_their_row(form):
    # Two ends and a start stand before the image: more ends than starts, whatever row 0 ends with.
    spec = spec_of("glm4v", "transformers")
    prompt = Prompt.from_symbols(spec, ["ttt]]]", "]][tIt"], image_grid_thw=[[1, 2, 2]])
    assert_same(rope_index(prompt, form), prompt.expected())
    wrong = replace(
        prompt, image_grid_thw=prompt.video_grid_thw, video_grid_thw=prompt.image_grid_thw
    )
    with pytest.raises(ValueError, match="row 1 holds image tokens beyond the last grid"):
        rope_index(wrong, form)


# Rows, padding, packing


@each_convention
def test_any_choice_of_rows_in_any_order_is_answered_as_in_the_batch(spec):
    @given(fitting(spec), st.data())
    def check(prompt, data):
        batch = len(prompt.input_ids)
        rows = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=4))
        position_ids, rope_deltas = rope_index(prompt)
        answer = rope_index(choose_rows(prompt, rows))
        assert_same(answer, (position_ids[:, rows], rope_deltas[rows]))

    check()


@each_convention
def test_masked_tokens_may_stand_anywhere_and_be_anything(spec):
    ids = [*_special_ids(spec), 11]

    @given(fitting(spec), st.integers(1, 9), st.booleans(), st.integers(0, 2**32))
    def check(prompt, added, as_types, seed):
        rng = random.Random(seed)
        batch, seq_len = prompt.input_ids.shape
        longer = seq_len + added
        places = torch.tensor(
            [sorted(rng.sample(range(longer), seq_len)) for _ in range(batch)]
        ).view(batch, seq_len)
        junk = torch.tensor([[rng.choice(ids) for _ in range(longer)] for _ in range(batch)])
        position_ids, rope_deltas = rope_index(
            prompt,
            input_ids=junk.scatter(1, places, prompt.input_ids),
            attention_mask=torch.zeros_like(junk).scatter(1, places, kept(prompt).long()),
            mm_token_type_ids=(junk % 3).scatter(1, places, prompt.mm_token_type_ids)
            if as_types
            else None,
        )
        expected, expected_deltas = rope_index(prompt)
        filled = torch.full_like(position_ids, spec.padding_value)
        assert_same(
            (position_ids, rope_deltas),
            (
                filled.scatter(2, places.expand(3, -1, -1), expected),
                expected_deltas - (added if spec.delta_length == "padded" else 0),
            ),
        )

    check()


@each_convention
@parametrize("capacity", {"exact": {}, "static": {"form": "static"}})
def test_packed_sequences_are_answered_one_by_one(spec, capacity):
    @given(fitting(spec), st.sampled_from([torch.int32, torch.int64]), st.booleans())
    def check(prompt, dtype, as_types):
        keep = kept(prompt)
        lengths = keep.sum(1)
        position_ids, rope_deltas = rope_index(
            prompt,
            input_ids=prompt.input_ids[keep],
            mm_token_type_ids=prompt.mm_token_type_ids[keep] if as_types else None,
            attention_mask=None,
            cu_seqlens=torch.tensor([0, *accumulate(lengths.tolist())], dtype=dtype),
            **capacity,
        )
        expected, expected_deltas = rope_index(prompt)
        if spec.delta_length == "padded":
            expected_deltas += (prompt.input_ids.shape[1] - lengths)[:, None]
        assert_same((position_ids, rope_deltas), (expected[:, keep], expected_deltas))

    check()


@each_convention
@parametrize("form", {"exact": get_rope_index, "static": static_rope_index})
def test_packed_sequences_may_be_masked(spec, form):
    @given(fitting(spec))
    def check(prompt):
        batch, seq_len = prompt.input_ids.shape
        position_ids, rope_deltas = rope_index(
            prompt,
            form,
            input_ids=prompt.input_ids.flatten(),
            attention_mask=kept(prompt).flatten(),
            cu_seqlens=torch.arange(batch + 1) * seq_len,
        )
        expected, expected_deltas = rope_index(prompt)
        assert_same((position_ids, rope_deltas), (expected.flatten(1), expected_deltas))

    check()


@each_convention
@each_form
@pytest.mark.parametrize(
    ("row", "cu_seqlens", "positions", "deltas"),
    [
        pytest.param("ttIt", [0, 0, 2, 2, 4, 4, 4], [0, 1, 0, 1], [0] * 6, id="empty among others"),
        pytest.param("ttIt", [0, 4], [0, 1, 2, 3], [0], id="one sequence"),
        pytest.param("[tIt", [0, 1, 4], [0, 0, 1, 2], [0, 0], id="a marker in another sequence"),
        pytest.param("", [0, 0, 0], [], [0, 0], id="nothing but empty ones"),
    ],
)
def test_packed_by_hand(form, spec, row, cu_seqlens, positions, deltas):
    prompt = Prompt.from_symbols(spec, [row], image_grid_thw=[[1, 2, 2]] if "I" in row else None)
    answer = rope_index(
        prompt, form, input_ids=prompt.input_ids[0], cu_seqlens=torch.tensor(cu_seqlens)
    )
    expected = torch.tensor(positions, dtype=torch.int64).expand(3, -1)
    assert_same(answer, (expected, torch.tensor(deltas)[:, None]))


# Grids


@each_convention
def test_zero_grids_anywhere_change_nothing(spec):
    @given(fitting(spec), st.data())
    def check(prompt, data):
        padded = {}
        for name in ("image_grid_thw", "video_grid_thw"):
            grids = grid_list(getattr(prompt, name))
            for _ in range(data.draw(st.integers(0, 3))):
                grids.insert(data.draw(st.integers(0, len(grids))), [0, 0, 0])
            padded[name] = grid_tensor(grids)
        for form in FORMS.values():
            assert_same(rope_index(prompt, form, **padded), prompt.expected())

    check()


@each_convention
@pytest.mark.parametrize(
    "grids", [None, grid_tensor([]), grid_tensor([[0, 0, 0]] * 2)], ids=["none", "empty", "zeros"]
)
def test_text_needs_no_grid(spec, grids):
    prompt = Prompt.from_symbols(spec, ["tt<>[]", "tttttt"])
    expected = torch.arange(6).expand(3, 2, 6), torch.zeros((2, 1), dtype=torch.int64)
    for form in FORMS.values():
        answer = rope_index(prompt, form, image_grid_thw=grids, video_grid_thw=grids)
        assert_same(answer, expected)


@each_convention
def test_touching_images_are_answered_as_if_text_stood_between_them(spec):
    side = st.integers(1, 4).map(lambda tokens: tokens * spec.spatial_merge_size)
    grid = st.tuples(st.just(1), side, side)

    @given(st.lists(grid, min_size=1, max_size=5), st.sampled_from(["I", "video"]))
    def check(grids, kind):
        blocks = ["I" * (h * w // spec.spatial_merge_size**2) for _, h, w in grids]
        name = "video_grid_thw" if kind == "video" else "image_grid_thw"
        start = "[" if kind == "video" else "t"
        touching = Prompt.from_symbols(spec, [start + "".join(blocks) + "t"], **{name: grids})
        apart = Prompt.from_symbols(spec, [start + "t".join(blocks) + "t"], **{name: grids})
        separators = torch.tensor(list(accumulate(len(block) + 1 for block in blocks[:-1])))
        keep = torch.ones_like(apart.input_ids[0], dtype=torch.bool)
        keep[separators.long()] = False
        passed = (~keep).cumsum(0)[keep]

        position_ids, rope_deltas = rope_index(touching)
        apart_ids, apart_deltas = rope_index(apart)
        assert_same((position_ids, rope_deltas), (apart_ids[..., keep] - passed, apart_deltas))

    check()


# Forms of the arguments


@each_convention
def test_int32_equals_int64(spec):
    @given(fitting(spec))
    def check(prompt):
        expected, expected_deltas = prompt.expected()
        for form in FORMS.values():
            answer = rope_index(prompt, form, input_ids=prompt.input_ids.int())
            assert_same(answer, (expected.int(), expected_deltas))

    check()


def a_prompt(spec):
    return Prompt.from_symbols(
        spec,
        ["t<IIIIII>tt", "[<II>t<II>]", "tIItttttttt"[:11]],
        mask=["1" * 11, "1" * 11, "00011111110"],
        image_grid_thw=[[1, 4, 6]],
        video_grid_thw=[[2, 2, 4]],
    )


@each_convention
@each_form
@pytest.mark.parametrize(
    ("mask", "types", "grids"),
    [
        (torch.bool, torch.uint8, torch.int32),
        (torch.int8, torch.int8, torch.int16),
        (torch.uint8, torch.int32, torch.uint8),
        (torch.int32, torch.int64, torch.int64),
    ],
    ids=str,
)
def test_masks_types_and_grids_of_any_integer_dtype(spec, form, mask, types, grids):
    prompt = a_prompt(spec)
    arguments = {
        "attention_mask": prompt.attention_mask.to(mask),
        "image_grid_thw": prompt.image_grid_thw.to(grids),
        "video_grid_thw": prompt.video_grid_thw.to(grids),
    }
    by_type = {**arguments, "mm_token_type_ids": prompt.mm_token_type_ids.to(types)}
    assert_same(rope_index(prompt, form, **arguments), prompt.expected())
    assert_same(rope_index(prompt, form, **by_type), prompt.expected())


@each_convention
@each_form
@parametrize("as_types", {"ids": False, "types": True})
def test_strided_inputs_are_read_and_left_as_they_are(spec, form, as_types):
    prompt = a_prompt(spec)
    arguments = prompt.arguments() | ({} if as_types else {"mm_token_type_ids": None})
    strided = {
        name: value.repeat_interleave(2, 1)[:, ::2]
        if "grid" in name
        else value.t().contiguous().t()
        for name, value in arguments.items()
        if value is not None
    }
    assert not any(value.is_contiguous() for value in strided.values())
    copies = {name: value.clone() for name, value in strided.items()}

    position_ids, rope_deltas = form(spec=spec, **strided)
    assert_same((position_ids, rope_deltas), prompt.expected())
    assert_same(strided.values(), copies.values())

    storages = {value.untyped_storage().data_ptr() for value in strided.values()}
    assert position_ids.untyped_storage().data_ptr() not in storages
    assert rope_deltas.untyped_storage().data_ptr() not in storages


@each_convention
@each_form
@parametrize(
    "rows", {"text": ["ttt", "ttt"], "an image": ["tIt", "ttt"], "touching images": ["III", "tII"]}
)
def test_every_position_has_memory_of_its_own(spec, form, rows):
    grids = [[1, 2, 2]] * "".join(rows).count("I")
    prompt = Prompt.from_symbols(spec, rows, image_grid_thw=grids)
    position_ids, rope_deltas = rope_index(prompt, form)
    assert position_ids.is_contiguous()
    expected = position_ids.clone()
    expected[0, 0, 1] = 99
    position_ids[0, 0, 1] = 99
    rope_deltas[0] = 99
    assert torch.equal(position_ids, expected)
    assert rope_deltas.tolist() == [[99], [0]]


@each_convention
@each_form
def test_an_expanded_mask_and_expanded_ids(spec, form):
    prompt = Prompt.from_symbols(
        spec, ["tIIt"] * 3, mask=["1110"] * 3, image_grid_thw=[[1, 2, 4]] * 3
    )
    answer = rope_index(
        prompt,
        form,
        input_ids=prompt.input_ids[:1].expand(3, -1),
        attention_mask=prompt.attention_mask[:1].expand(3, -1),
        image_grid_thw=prompt.image_grid_thw[:1].expand(3, -1),
    )
    assert_same(answer, prompt.expected())


@each_form
@pytest.mark.parametrize("default", [torch.float16, torch.float64], ids=str)
def test_nothing_depends_on_the_default_dtype_nor_on_gradients(form, default):
    spec = spec_of("glm4v", "sglang")
    # float16 counts to 2,048.
    long = Prompt.from_symbols(spec, ["t" * 3000 + "It"], image_grid_thw=[[1, 2, 2]])
    for prompt in (a_prompt(spec), long):
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            answer = rope_index(prompt, form)
        finally:
            torch.set_default_dtype(before)
        assert_same(answer, prompt.expected())
        assert not any(tensor.requires_grad for tensor in answer)
        with torch.inference_mode():
            assert_same(rope_index(prompt, form), prompt.expected())


@each_form
@each_convention
@parametrize(
    "rows",
    {"text": ["ttt"], "one row": ["tIt[It]"], "two rows": ["tIt[It]", "]ttttIt"], "all": None},
)
def test_nothing_depends_on_the_default_device(spec, form, rows):
    # What is kept of a spec is made at its first use.
    spec = replace(spec, image_token_id=spec.image_token_id + next(UNSEEN))
    prompt = a_prompt(spec)
    if rows:
        grids = [[1, 2, 2]] * "".join(rows).count("tI")
        videos = [[1, 2, 2]] * "".join(rows).count("[I")
        prompt = Prompt.from_symbols(spec, rows, image_grid_thw=grids, video_grid_thw=videos)
    with torch.device("meta"):
        answer = rope_index(prompt, form)
    assert {tensor.device.type for tensor in answer} == {"cpu"}
    assert_same(answer, prompt.expected())


@each_convention
@each_form
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_a_long_prompt(spec, form, dtype):
    texts = 70_000
    row = "t" * texts + "IIII" + "t"
    prompt = Prompt.from_symbols(spec, [row], image_grid_thw=[[1, 4, 4]])
    answer = rope_index(prompt, form, input_ids=prompt.input_ids.to(dtype))
    t, h, w = (list(range(texts)) for _ in range(3))
    t += [texts, texts, texts, texts, texts + 2]
    h += [texts, texts, texts + 1, texts + 1, texts + 2]
    w += [texts, texts + 1, texts, texts + 1, texts + 2]
    assert_same(answer, (torch.tensor([[t], [h], [w]], dtype=dtype), torch.tensor([[-2]])))


# By hand


_ = None  # a masked place

BY_HAND = {
    "text": (
        {"rows": ["tttt"]},
        ([[0, 1, 2, 3]], [[0, 1, 2, 3]], [[0, 1, 2, 3]]),
        {"sglang": [0], "transformers": [0]},
    ),
    "an image of two lines of three": (
        {"rows": ["t<IIIIII>t"], "image_grid_thw": [[1, 4, 6]]},
        (
            [[0, 1, 2, 2, 2, 2, 2, 2, 5, 6]],
            [[0, 1, 2, 2, 2, 3, 3, 3, 5, 6]],
            [[0, 1, 2, 3, 4, 2, 3, 4, 5, 6]],
        ),
        {"sglang": [-3], "transformers": [-3]},
    ),
    "a video of two frames with a timestamp after each": (
        {"rows": ["[<II>t<II>t]"], "video_grid_thw": [[2, 2, 4]]},
        (
            [[0, 1, 2, 2, 4, 5, 6, 7, 7, 9, 10, 11]],
            [[0, 1, 2, 2, 4, 5, 6, 7, 7, 9, 10, 11]],
            [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]],
        ),
        {"sglang": [0], "transformers": [0]},
    ),
    "padding on the left, on the right, and a row of nothing else": (
        {
            "rows": ["tttIIIIt", "IIIItttt", "tIt[ttII"],
            "mask": ["00111111", "11111000", "00000000"],
            "image_grid_thw": [[1, 4, 4], [1, 8, 2]],
        },
        (
            [[_, _, 0, 1, 1, 1, 1, 3], [0, 0, 0, 0, 4, _, _, _], [_] * 8],
            [[_, _, 0, 1, 1, 2, 2, 3], [0, 1, 2, 3, 4, _, _, _], [_] * 8],
            [[_, _, 0, 1, 2, 1, 2, 3], [0, 0, 0, 0, 4, _, _, _], [_] * 8],
        ),
        {"sglang": [-4, -3, -8], "transformers": [-2, 0, 0]},
    ),
    "a masked token alone": (
        {"rows": ["t"], "mask": ["0"]},
        ([[_]],) * 3,
        {"sglang": [-1], "transformers": [0]},
    ),
    "a hole in the mask inside an image leaves one image": (
        {"rows": ["tItIII]t"], "mask": ["11011101"], "image_grid_thw": [[1, 4, 4]]},
        (
            [[0, 1, _, 1, 1, 1, _, 3]],
            [[0, 1, _, 1, 2, 2, _, 3]],
            [[0, 1, _, 2, 1, 2, _, 3]],
        ),
        {"sglang": [-4], "transformers": [-2]},
    ),
    "masked markers mark nothing": (
        {
            "rows": ["[It[It]I"],
            "mask": ["01111101"],
            "image_grid_thw": [[1, 2, 2]],
            "video_grid_thw": [[2, 2, 2]],
        },
        ([[_, 0, 1, 2, 3, 4, _, 5]],) * 3,
        {"sglang": [-2], "transformers": [0]},
    ),
    "a video over two rows, then another": (
        {"rows": ["[IIt", "[IIt", "[I]t"], "video_grid_thw": [[2, 2, 4], [1, 2, 2]]},
        (
            [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]],
            [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]],
            [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]],
        ),
        {"sglang": [0, 0, 0], "transformers": [0, 0, 0]},
    ),
}


@each_convention
@each_form
@parametrize("case", BY_HAND)
def test_by_hand(case, form, spec):
    arguments, axes, deltas = case
    prompt = Prompt.from_symbols(spec, **arguments)
    filled = [
        [[spec.padding_value if position is _ else position for position in row] for row in axis]
        for axis in axes
    ]
    expected = torch.tensor(filled), torch.tensor(deltas[spec.convention])[:, None]
    assert_same(rope_index(prompt, form), expected)
    assert_same(rope_index(prompt, form, mm_token_type_ids=prompt.mm_token_type_ids), expected)


@each_form
@pytest.mark.parametrize(
    ("rows", "grids", "sglang", "transformers"),
    [
        pytest.param(
            "[[I]It",
            {"image_grid_thw": [[1, 2, 2]], "video_grid_thw": [[1, 2, 2]]},
            [[0, 1, 2, 3, 4, 5]] * 3 + [0],
            None,
            id="two starts and one end: a video's frame, then an image",
        ),
        pytest.param(
            "[[I]It",
            {"video_grid_thw": [[2, 2, 2]]},
            None,
            [[0, 1, 2, 3, 4, 5]] * 3 + [0],
            id="two starts and one end: two frames of a video",
        ),
        pytest.param(
            "tIIIt",
            {"image_grid_thw": [[3, 2, 2]]},
            [[0, 1, 2, 3, 4], [0, 1, 1, 1, 4], [0, 1, 1, 1, 4], 0],
            [[0, 1, 2, 3, 2], [0, 1, 1, 1, 2], [0, 1, 1, 1, 2], -1],
            id="an image of three frames",
        ),
    ],
)
def test_where_the_conventions_differ(form, rows, grids, sglang, transformers):
    for convention, answer in (("sglang", sglang), ("transformers", transformers)):
        prompt = Prompt.from_symbols(spec_of("glm4v", convention), [rows], **grids)
        if answer is None:
            with pytest.raises(ValueError, match="beyond the last grid"):
                rope_index(prompt, form)
            continue
        t, h, w, delta = answer
        expected = torch.tensor([[t], [h], [w]]), torch.tensor([[delta]])
        assert_same(rope_index(prompt, form), expected)


@each_convention
@each_form
def test_types_that_contradict_the_ids_are_believed(form, spec):
    prompt = Prompt.from_symbols(
        spec, ["IIt[tIt"], image_grid_thw=[[1, 2, 2]], video_grid_thw=[[1, 4, 2]]
    )
    types = torch.tensor([[0, 0, 2, 2, 1, 0, 0]])
    t, h, w = [0, 1, 2, 2, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 2, 4, 5, 6]
    answer = rope_index(prompt, form, mm_token_type_ids=types)
    assert_same(answer, (torch.tensor([[t], [h], [w]]), torch.tensor([[0]])))


def test_real_ids_of_every_family():
    for model_type, image, start, end in (
        ("glm4v", 151343, 151341, 151342),
        ("glm4v_moe", 151363, 151341, 151342),
        ("glm46v", 151343, 151361, 151362),
        ("glm_ocr", 59280, 59258, 59259),
    ):
        ids = [[8, image, image, 9, start, 7, image, image, 6, end, image, image]]
        for convention in CONVENTIONS:
            position_ids, rope_deltas = get_rope_index(
                torch.tensor(ids),
                spec_of(model_type, convention),
                image_grid_thw=torch.tensor([[1, 4, 2], [1, 2, 4]]),
                video_grid_thw=torch.tensor([[1, 2, 4]]),
            )
            assert position_ids.tolist() == [
                [[0, 1, 1, 3, 4, 5, 6, 6, 8, 9, 10, 10]],
                [[0, 1, 2, 3, 4, 5, 6, 6, 8, 9, 10, 10]],
                [[0, 1, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]],
            ]
            assert rope_deltas.tolist() == [[0]]


@each_convention
@each_form
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_a_batch_without_tokens(spec, form, shape, dtype):
    ids = torch.empty(shape, dtype=dtype)
    expected = ids.new_empty((3, *shape)), torch.zeros((shape[0], 1), dtype=torch.int64)
    grids = {"image_grid_thw": grid_tensor([]), "video_grid_thw": grid_tensor([[0, 0, 0]])}
    rest = {"attention_mask": ids.bool(), "mm_token_type_ids": ids}
    for arguments in ({}, grids, rest, {**grids, **rest}):
        assert_same(form(ids, spec, **arguments), expected)
        assert_same(form(ids, spec, validate=False, **arguments), expected)
    with pytest.raises(ValueError, match="the grids describe 2 image tokens and 0 video tokens"):
        form(ids, spec, image_grid_thw=torch.tensor([[1, 2, 4]]))
