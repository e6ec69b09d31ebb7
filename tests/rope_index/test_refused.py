from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import assert_same, choose_rows, fitting, rope_index, spec_of

from tests.rope_index.forms import OTHERS, each_convention, each_form, parametrize, special_ids
from vecrope.testing import Prompt


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


def test_frames_of_one_patch_by_one_are_expanded():
    spec = OTHERS["unmerged"]
    row = "[ItIt][IIt]".ljust(20, "t")
    prompt = Prompt.from_symbols(spec, [row] * 2, video_grid_thw=[[2, 1, 1], [1, 1, 2]] * 2)
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


@each_form
@each_convention
def test_ids_that_share_their_last_byte_with_a_special_one_are_text(spec, form):
    prompt = Prompt.from_symbols(
        spec, ["t<II>tttt[It]t"] * 2, image_grid_thw=[[1, 2, 4]] * 2, video_grid_thw=[[2, 2, 2]]
    )
    ids = prompt.input_ids.clone()
    for row in range(2):
        ids[row, 5:8] = torch.tensor(special_ids(spec)) + (256 if row else -256)
    assert_same(rope_index(prompt, form, input_ids=ids), prompt.expected())


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
    image, start, end = special or special_ids(spec)
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
