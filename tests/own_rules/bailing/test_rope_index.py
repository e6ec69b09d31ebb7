import torch
from own_support import (
    assert_positions,
    ids_of,
)
from support import assert_same

from tests.own_rules.bailing.calls import BLOCKS, FRAMES, VLLM, each_spec
from vecrope import get_rope_index

# Worked examples


@each_spec
def test_cells_are_centred_on_the_time_of_their_frame(spec):
    assert_positions(
        spec,
        ["t<IIIIIIt"],
        [
            [[0, 1, 2, 2, 2, 2, 2, 2, 3]],
            [[0, 1, 2, 2, 2, 3, 3, 3, 3]],
            [[0, 1, 1, 2, 3, 1, 2, 3, 3]],
        ],
        [[-5]],
        image_grid_thw=[[1, 4, 6]],
    )


def test_frames_of_one_block_are_two_apart():
    assert_positions(
        BLOCKS,
        ["[VVVVt"],
        [[[0, 1, 1, 3, 3, 4]], [[0, 1, 1, 3, 3, 4]], [[0, 1, 2, 3, 4, 4]]],
        [[-1]],
        video_grid_thw=[[2, 2, 4]],
    )


def test_separate_frames_follow_the_marker_of_images():
    assert_positions(
        FRAMES,
        ["t<VVt<VV"],
        [
            [[0, 1, 2, 2, 3, 4, 5, 5]],
            [[0, 1, 2, 2, 3, 4, 5, 5]],
            [[0, 1, 2, 3, 3, 4, 5, 6]],
        ],
        [[-2]],
        video_grid_thw=[[2, 2, 4]],
    )


def test_positions_may_be_negative():
    position_ids, _ = get_rope_index(
        ids_of("<" + "I" * 7), BLOCKS, image_grid_thw=torch.tensor([[1, 2, 14]])
    )
    assert position_ids[2].tolist() == [[0, -2, -1, 0, 1, 2, 3, 4]]


def test_frames_of_an_image_are_two_apart_as_well():
    position_ids, rope_deltas = get_rope_index(
        ids_of("<IIt"), BLOCKS, image_grid_thw=torch.tensor([[2, 2, 2]])
    )
    assert position_ids[0].tolist() == [[0, 1, 3, 4]]
    assert rope_deltas.tolist() == [[1]]


def test_a_mask_is_ignored():
    arguments = {"image_grid_thw": torch.tensor([[1, 2, 2]])}
    mask = torch.tensor([[0, 0, 1, 1]])
    assert_same(
        get_rope_index(ids_of("t<It"), BLOCKS, attention_mask=mask, **arguments),
        get_rope_index(ids_of("t<It"), BLOCKS, **arguments),
    )


def test_types_are_believed_without_markers():
    assert_positions(
        BLOCKS,
        ["tttt"],
        [[[0, 1, 1, 2]], [[0, 1, 1, 2]], [[0, 1, 2, 2]]],
        [[-1]],
        video_grid_thw=[[1, 2, 4]],
        mm_token_type_ids=[[0, 2, 2, 0]],
    )


def test_under_vllm_it_is_numbered_by_the_shared_rule():
    assert VLLM.own_rule is None
    assert_positions(
        VLLM,
        ["t<IIIIIIt"],
        [
            [[0, 1, 2, 2, 2, 2, 2, 2, 5]],
            [[0, 1, 2, 2, 2, 3, 3, 3, 5]],
            [[0, 1, 2, 3, 4, 2, 3, 4, 5]],
        ],
        [[-3]],
        image_grid_thw=[[1, 4, 6]],
    )
