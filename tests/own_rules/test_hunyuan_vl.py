from types import MethodType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from own_support import (
    IMAGE,
    answer,
    assert_positions,
    assert_refused,
    hunyuan_spec,
    ids_of,
)
from support import assert_same, grid_list, kept
from transformers import HunYuanVLConfig
from transformers.models.hunyuan_vl.modeling_hunyuan_vl import HunYuanVLModel

from vecrope import MRopeSpec, get_rope_index
from vecrope.families.rules import Hunyuan
from vecrope.testing import conversations, reference, token_soup

THREE, FOUR = hunyuan_spec(3), hunyuan_spec(4)
each_number_of_axes = pytest.mark.parametrize("num_axes", [3, 4, 5])


# Worked examples


def test_the_last_three_axes_are_the_cells_of_an_image_between_its_wrappers():
    # Two lines of two columns and a line's end, between two tokens that keep their index.
    assert_positions(
        FOUR,
        ["tt" + "I" * 8 + "t"],
        [
            [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]],
            [[0, 1, 2, 0, 1, 2, 0, 1, 2, 9, 10]],
            [[0, 1, 2, 0, 0, 0, 1, 1, 1, 9, 10]],
            [[0, 1, 2, 0, 0, 0, 0, 0, 0, 9, 10]],
        ],
        [[0]],
        image_grid_thw=[[1, 4, 4]],
    )


def test_an_image_at_the_end_lowers_the_delta():
    # One line of 10 columns and its end.
    assert_positions(
        THREE,
        ["t" + "I" * 11],
        [[[0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]], [[0] * 12], [[0] * 12]],
        [[-1]],
        image_grid_thw=[[1, 2, 20]],
    )


def test_images_are_numbered_on_across_rows_and_their_frames_ignored():
    assert_positions(
        THREE,
        ["IIt", "tII"],
        [[[0, 1, 2], [0, 0, 1]], [[0, 0, 2], [0, 0, 0]], [[0, 0, 2], [0, 1, 1]]],
        [[0], [-1]],
        image_grid_thw=[[3, 2, 2], [1, 2, 2]],
    )


def test_a_tall_image_at_the_end_sets_the_delta():
    # Four lines of one column and its end.
    assert_positions(
        THREE,
        ["t" + "I" * 8],
        [[[0, *[0, 1] * 4]], [[0, *[0, 0, 1, 1, 2, 2, 3, 3]]], [[0] * 9]],
        [[-5]],
        image_grid_thw=[[1, 8, 2]],
    )


def test_the_number_of_an_image_can_be_the_largest_position_of_its_row():
    # The fourth image of the batch, in a row of two tokens.
    assert_positions(
        THREE,
        ["IItIItII", "IItttttt"],
        [
            [[0, 1, 2, 0, 1, 5, 0, 1], [0, 1, 0, 0, 0, 0, 0, 0]],
            [[0, 0, 2, 0, 0, 5, 0, 0], [0] * 8],
            [[0, 0, 2, 1, 1, 5, 2, 2], [3, 3, 0, 0, 0, 0, 0, 0]],
        ],
        [[-2], [2]],
        image_grid_thw=[[1, 2, 2]] * 4,
        attention_mask=[[1] * 8, [1, 1, 0, 0, 0, 0, 0, 0]],
    )


def test_masked_tokens_are_left_out_and_a_hole_does_not_cut_an_image():
    assert_positions(
        THREE,
        ["ttItIt"],
        [[[0, 0, 0, 0, 1, 3]], [[0, 0, 0, 0, 0, 3]], [[0, 0, 0, 0, 0, 3]]],
        [[0]],
        image_grid_thw=[[1, 2, 2]],
        attention_mask=[[0, 1, 1, 0, 1, 1]],
    )


def test_without_grids_all_tokens_are_text():
    index = [[0, 1, 2, 3]]
    assert_positions(FOUR, ["tIIt"], [index] * 4, [[0]])


def test_types_are_believed_instead_of_the_ids_and_others_than_images_ignored():
    cells = [[0, 0, 1, 3, 4]], [[0, 0, 0, 3, 4]], [[0, 0, 0, 3, 4]]
    arguments = {"image_grid_thw": [[1, 2, 2]], "mm_token_type_ids": [[0, 1, 1, 2, 0]]}
    assert_positions(THREE, ["ttttI"], [*cells], [[0]], **arguments)
    ids, types = ids_of("ttttI").tolist(), arguments["mm_token_type_ids"]
    position_ids, _ = reference.hunyuan_vl.get_rope_index(
        ids,
        num_axes=3,
        image_token_id=IMAGE,
        spatial_merge_size=2,
        image_grid_thw=[(1, 2, 2)],
        mm_token_type_ids=types,
    )
    assert position_ids == [*cells]


def test_the_index_of_a_fourth_axis_counts_for_the_delta_where_an_image_ends_the_row():
    cells = [0, 1, 2], [0, 0, 1], [0, 0, 0], [0, 0, 0]
    rows = [[axis] for axis in cells]
    assert_positions(FOUR, ["tII"], rows, [[0]], image_grid_thw=[[1, 2, 2]])
    assert_positions(THREE, ["tII"], rows[1:], [[-1]], image_grid_thw=[[1, 2, 2]])


def test_a_row_without_tokens_has_a_delta_of_zero():
    position_ids, rope_deltas = get_rope_index(
        ids_of("tt"), THREE, attention_mask=torch.zeros(1, 2, dtype=torch.int64)
    )
    assert position_ids.tolist() == [[[0, 0]]] * 3
    assert rope_deltas.tolist() == [[0]]


# transformers, live


def transformers_rope_index(prompt):
    section = {"mrope_section": [1] * prompt.spec.own_rule.num_axes}
    model = SimpleNamespace(
        config=SimpleNamespace(
            text_config=SimpleNamespace(rope_parameters=section),
            vision_config=SimpleNamespace(spatial_merge_size=prompt.spec.spatial_merge_size),
        )
    )
    model.get_vision_position_ids = MethodType(HunYuanVLModel.get_vision_position_ids, model)
    arguments = prompt.arguments()
    types = (arguments["input_ids"] == prompt.spec.image_token_id).int()
    return HunYuanVLModel.get_rope_index(model, mm_token_type_ids=types, **arguments)


@each_number_of_axes
def test_prompts_are_answered_as_by_transformers(num_axes):
    @given(conversations(hunyuan_spec(num_axes)))
    def check(prompt):
        if not kept(prompt).any(1).all():
            return  # transformers fails on a row without tokens
        theirs = transformers_rope_index(prompt)
        assert_same(answer(prompt), theirs)
        types = (prompt.arguments()["input_ids"] == IMAGE).long()
        assert_same(answer(prompt, mm_token_type_ids=types), theirs)

    check()


def test_where_transformers_alone_answers_a_grid_shows_why():
    """It takes any grid, of any size, for an image of the floor of its sides."""

    @given(token_soup(FOUR))
    def check(prompt):
        grids = grid_list(prompt.image_grid_thw)
        sound = all(min(grid) > 0 and grid[1] % 2 == grid[2] % 2 == 0 for grid in grids)
        try:
            theirs = transformers_rope_index(prompt)
        except (RuntimeError, ValueError):
            theirs = None
        try:
            ours = answer(prompt)
        except ValueError:
            assert theirs is None or not sound
            return
        if theirs is not None:
            assert_same(ours, theirs)
        else:
            zeros = any(not any(grid) for grid in grids)
            assert zeros or not kept(prompt).any(1).all()

    check()


def test_int32_ids_are_answered_in_int32_as_by_transformers():
    ids = ids_of("tIIt", "IItt").int()
    grids = torch.tensor([[1, 2, 2], [1, 2, 2]])
    theirs = HunYuanVLModel.get_rope_index(
        SimpleNamespace(
            config=SimpleNamespace(
                text_config=SimpleNamespace(rope_parameters={"mrope_section": [1] * 3}),
                vision_config=SimpleNamespace(spatial_merge_size=2),
            ),
            get_vision_position_ids=lambda *args, **kwargs: HunYuanVLModel.get_vision_position_ids(
                None, *args, **kwargs
            ),
        ),
        ids,
        (ids == IMAGE).int(),
        grids,
    )
    assert theirs[0].dtype == theirs[1].dtype == torch.int32
    assert_same(get_rope_index(ids, THREE, image_grid_thw=grids), theirs)


# Configurations


@pytest.mark.parametrize("num_axes", [3, 4])
@pytest.mark.parametrize("as_dict", [False, True], ids=["config", "dict"])
@pytest.mark.parametrize("name", ["mrope_section", "xdrope_section"])
def test_the_sections_of_a_configuration_are_the_axes(name, as_dict, num_axes):
    sections = [8 - num_axes + 1] + [1] * (num_axes - 1)
    rope = {"rope_type": "default", "rope_theta": 10000.0, name: sections}
    source = HunYuanVLConfig(text_config={"head_dim": 16, "rope_parameters": rope})
    spec = MRopeSpec.from_config(source.to_dict() if as_dict else source, convention="transformers")
    assert spec.own_rule == Hunyuan(num_axes)
    ids = {name: getattr(spec, name) for name in ("image_token_id", "spatial_merge_size")}
    assert ids == {
        "image_token_id": source.image_token_id,
        "spatial_merge_size": source.vision_config.spatial_merge_size,
    }
    assert spec == MRopeSpec.for_model(
        "hunyuan_vl", convention="transformers", own_rule=Hunyuan(num_axes)
    )


@pytest.mark.parametrize(
    "path",
    [
        ("text_config", "rope_parameters", "mrope_section"),
        ("text_config", "rope_scaling", "xdrope_section"),
        ("rope_parameters", "xdrope_section"),
        ("rope_scaling", "xdrope_section"),
    ],
    ids=".".join,
)
def test_the_sections_are_found_where_older_files_have_them(path):
    tree = [16, 16, 16, 16]
    for name in reversed(path):
        tree = {name: tree}
    vision = {"vision_config": {"spatial_merge_size": 2}}
    parsed = {"model_type": "hunyuan_vl", "image_token_id": 5, **vision, **tree}
    spec = MRopeSpec.from_config(parsed, convention="transformers")
    assert spec.own_rule == Hunyuan(4)


def test_the_class_has_no_sections_by_default():
    """So that its `get_rope_index` fails, and the number of axes has to be given."""
    default = HunYuanVLConfig()
    assert "mrope_section" not in default.text_config.rope_parameters
    with pytest.raises(ValueError, match=r"no field 'text_config.rope_parameters.mrope_section'"):
        MRopeSpec.from_config(default, convention="transformers")
    with pytest.raises(ValueError, match=r"'hunyuan_vl' has no default mrope_section: pass own_"):
        MRopeSpec.for_model("hunyuan_vl", convention="transformers")


@pytest.mark.parametrize(
    ("num_axes", "error", "match"),
    [
        pytest.param(2, ValueError, "num_axes must be at least 3, got 2", id="two"),
        pytest.param(3.0, TypeError, r"num_axes must be an int, got 3\.0", id="float"),
        pytest.param(True, TypeError, "num_axes must be an int, got True", id="bool"),
    ],
)
def test_a_wrong_number_of_axes_is_refused(num_axes, error, match):
    with pytest.raises(error, match=match):
        Hunyuan(num_axes)


# Refusals


@pytest.mark.parametrize(
    ("rows", "arguments", "match"),
    [
        pytest.param(
            ["ttt", "tII"],
            {"image_grid_thw": [[1, 4, 4]]},
            r"row 1, image 0: its grid \(1, 4, 4\) needs 6 tokens, or 8 with those around it, got "
            "2 in one run; was the prompt truncated inside the image",
            id="truncated",
        ),
        pytest.param(
            ["IIIIt"],
            {"image_grid_thw": [[1, 2, 2], [1, 2, 2]]},
            r"image_grid_thw row 1 \(1, 2, 2\) is left over: expected 2 runs of image tokens in "
            "all, got 1",
            id="touching images, which fit one image in wrappers",
        ),
        pytest.param(
            ["tt"],
            {"image_grid_thw": [[0, 0, 0], [1, 2, 2]]},
            r"image_grid_thw row 1 \(1, 2, 2\) is left over: expected 1 runs of image tokens in "
            r"all, got 0 \(image_token_id \d+ does not occur in input_ids\)",
            id="left over, as no token is an image's",
        ),
        pytest.param(
            ["II", "II"],
            {"image_grid_thw": [[1, 2, 2], [0, 0, 0]]},
            "row 1 holds image tokens beyond the last grid: expected 1 runs of them for the 2 rows "
            "of image_grid_thw, got 2 in all",
            id="no grid left",
        ),
        pytest.param(
            ["II"],
            {"image_grid_thw": [[1, 3, 2]]},
            "divisible by spatial_merge_size 2",
            id="not divisible",
        ),
        pytest.param(
            ["II"], {"video_grid_thw": [[1, 2, 2]]}, "hunyuan_vl has no videos, got 1", id="video"
        ),
        pytest.param(
            ["II"],
            {"images_per_sample": [1]},
            "images_per_sample must be None",
            id="images per sample",
        ),
    ],
)
def test_what_does_not_fit_is_refused(rows, arguments, match):
    assert_refused(THREE, match, rows, **arguments)
