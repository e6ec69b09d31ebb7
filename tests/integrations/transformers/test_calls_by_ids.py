"""The signatures of transformers 4.49 to 5.1, worked by hand: no such release is installed."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_config

from vecrope.integrations.transformers.rules import rules_of

TEXT, IMAGE, VIDEO, START, END = 7, 60, 61, 62, 63


def call(model_type, rules, rows, *arguments, **named):
    """Return positions and deltas as lists."""
    config = tiny_config(model_type)
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}
    for name, token in ids.items():
        setattr(config, name, token)
    found = rules_of(model_type)[rules]
    spec = found.spec_of(config)
    positions, deltas = found.call(
        SimpleNamespace(config=config), spec, True, torch.tensor(rows), *arguments, **named
    )
    return positions.tolist(), deltas.tolist()


def test_text_has_no_grids_and_its_padding_counts_as_position_1():
    rows = [[TEXT] * 4] * 2
    assert call("qwen2_vl", "ids", rows) == ([[[0, 1, 2, 3]] * 2] * 3, [[0], [0]])
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]])
    text = call("qwen2_vl", "ids", rows, attention_mask=mask)
    assert text == ([[[1, 1, 0, 1], [1, 1, 1, 0]]] * 3, [[-2], [-2]])


def test_seconds_are_multiplied_by_the_rate_and_those_of_grids_left_over_are_not_read():
    row = [TEXT, START, VIDEO, VIDEO, END]
    grids, seconds = torch.tensor([[2, 2, 2]] * 2), torch.tensor([1.0, 9.0])
    rate = tiny_config("qwen2_5_vl").vision_config.tokens_per_second
    positions, deltas = call("qwen2_5_vl", "ids", [row], None, grids, second_per_grid_ts=seconds)
    assert positions == [[[0, 1, 2, 2 + rate, 3 + rate]], *[[[0, 1, 2, 2, 3 + rate]]] * 2]
    assert deltas == [[rate - 1]]


@pytest.mark.parametrize(
    ("row", "images", "videos", "message"),
    [
        ([TEXT, IMAGE, TEXT], [[1, 2, 2]], None, "every image .* id 62, .*: expected 1 .*, got 0"),
        ([IMAGE, START, IMAGE], [[1, 2, 2]] * 2, None, "every image .*: expected 2 .*, got 1"),
        ([TEXT, VIDEO, VIDEO], None, [[2, 2, 2]], "every video .*: expected 1 .*, got 0"),
    ],
)
def test_media_without_a_vision_start_are_refused(row, images, videos, message):
    grids = [None if grid is None else torch.tensor(grid) for grid in (images, videos)]
    with pytest.raises(ValueError, match=message):
        call("qwen2_vl", "ids", [row], *grids)


def test_every_frame_of_its_own_needs_a_vision_start():
    row = [START, VIDEO, END, TEXT, VIDEO]
    with pytest.raises(ValueError, match=r"every separate frame .*: expected 2 .*, got 1"):
        call("qwen3_vl", "ids", [row], None, torch.tensor([[2, 2, 2]]))


def test_without_types_every_token_is_text():
    row = [TEXT, IMAGE, IMAGE]
    positions, deltas = call("ernie4_5_vl_moe", "optional types", [row], attention_mask=None)
    assert (positions, deltas) == ([[[0, 1, 2]]] * 3, [[0]])


def test_sides_are_rounded_down_to_the_merge_size_and_not_below_it():
    rows = [[START, IMAGE, END, TEXT]]
    for grids in ([[1, 3, 2]], [[1, 2, 3]], [[1, 2, 2]]):
        positions, deltas = call("qwen2_vl", "ids", rows, torch.tensor(grids))
        assert (positions, deltas) == ([[[0, 1, 2, 3]]] * 3, [[0]])
    for grids in ([[1, 1, 2]], [[1, 2, 1]]):
        with pytest.raises(ValueError, match="height and width of at least spatial_merge_size 2"):
            call("qwen2_vl", "ids", rows, torch.tensor(grids))


def test_optional_types_of_no_ids_are_refused_as_the_ids_are():
    config = tiny_config("ernie4_5_vl_moe")
    found = rules_of("ernie4_5_vl_moe")["optional types"]
    model = SimpleNamespace(config=config)
    with pytest.raises(TypeError, match="input_ids must be a tensor, got NoneType"):
        found.call(model, found.spec_of(config), True, None)
