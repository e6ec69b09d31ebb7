import torch
from own_support import (
    assert_positions,
    ids_of,
)

from tests.own_rules.glm_image.calls import SGLANG, TRANSFORMERS, decode_of, each_convention
from vecrope import (
    get_decode_position_ids,
    get_rope_index,
)

# Worked examples


@each_convention
def test_the_images_to_be_generated_are_numbered_from_the_last_one_backwards(spec):
    positions, lengths = decode_of(["ttt<"], spec, image_grid_thw=[[1, 2, 3], [1, 1, 2]])
    assert positions.tolist() == [
        [
            [4, 4, 6, 6, 6, 6, 6, 6, 9],
            [4, 4, 6, 6, 6, 7, 7, 7, 9],
            [4, 5, 6, 7, 8, 6, 7, 8, 9],
        ]
    ]
    assert lengths.tolist() == [9]
    assert_positions(
        spec,
        ["ttt<"],
        [[[0, 1, 2, 3]]] * 3,
        [[0]],
        image_grid_thw=[[1, 2, 3], [1, 1, 2]],
    )


@each_convention
def test_an_image_stands_between_its_markers(spec):
    # Its end marker belongs to the text behind it.
    assert_positions(
        spec,
        ["t<IIIIII>t<"],
        [
            [[0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7]],
            [[0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7]],
            [[0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7]],
        ],
        [[0]],
        image_grid_thw=[[1, 2, 3], [1, 9, 9]],
    )


def test_frames_of_an_image_count_up_in_time_and_do_not_move_what_follows():
    position_ids, _ = get_rope_index(
        ids_of("<IIII>t"), TRANSFORMERS, image_grid_thw=torch.tensor([[4, 1, 1]])
    )
    assert position_ids[0].tolist() == [[0, 1, 2, 3, 4, 2, 3]]


def test_masked_tokens_hold_one_and_every_row_has_its_own_grids():
    assert_positions(
        TRANSFORMERS,
        ["tt<I>", "<II>t"],
        [
            [[1, 0, 1, 2, 3], [0, 1, 1, 3, 4]],
            [[1, 0, 1, 2, 3], [0, 1, 1, 3, 4]],
            [[1, 0, 1, 2, 3], [0, 1, 2, 3, 4]],
        ],
        [[0], [0]],
        image_grid_thw=[[1, 1, 1], [1, 5, 5], [1, 1, 2]],
        images_per_sample=[2, 1],
        attention_mask=[[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    )


@each_convention
def test_without_grids_all_tokens_are_text_and_nothing_is_generated(spec):
    assert_positions(spec, ["<I>", "ttt"], [[[0, 1, 2]] * 2] * 3, [[0], [0]])
    positions, lengths = decode_of(["<I>", "ttt"], spec)
    assert positions.shape == (2, 3, 0)
    assert lengths.tolist() == [0, 0]


def test_a_row_that_generates_no_image_has_an_end_under_transformers_alone():
    arguments = {"image_grid_thw": [[1, 1, 1]]}
    positions, lengths = decode_of(["<I>t"], TRANSFORMERS, **arguments)
    assert (positions.tolist(), lengths.tolist()) == ([[[4]] * 3], [1])
    positions, lengths = decode_of(["<I>t"], SGLANG, **arguments)
    assert (positions.tolist(), lengths.tolist()) == ([[[]] * 3], [0])


def test_rows_are_continued_by_their_last_position():
    positions, lengths = decode_of(
        ["t<", "tt", "t<"],
        image_grid_thw=[[1, 1, 2], [1, 1, 3]],
        images_per_sample=[1, 0, 1],
    )
    assert positions[:, 2].tolist() == [[2, 3, 4, 4], [2, 2, 2, 2], [2, 3, 4, 5]]
    assert lengths.tolist() == [3, 0, 4]


def test_int32_ids_have_int64_decode_positions():
    ids = ids_of("tt<").int()
    grids = torch.tensor([[1, 1, 2]], dtype=torch.int32)
    positions, lengths = get_decode_position_ids(ids, TRANSFORMERS, image_grid_thw=grids)
    assert positions.dtype == lengths.dtype == torch.int64
