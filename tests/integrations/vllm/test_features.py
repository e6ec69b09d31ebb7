"""What the features of vLLM's models say, as groups."""

from types import ModuleType, SimpleNamespace

import pytest
import torch

from vecrope.integrations.vllm import features as features_of


def images(*grids, offset=1):
    for grid in grids:
        yield SimpleNamespace(
            modality="image",
            data={"image_grid_thw": SimpleNamespace(data=torch.tensor(grid))},
            mm_position=SimpleNamespace(offset=offset),
        )
        offset += grid[1] * grid[2] // 4


def test_groups_of_bailing():
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))
    )
    features = [*images((1, 2, 4), (1, 4, 4))]
    groups = [*features_of.images(model, [], features[::-1])]
    assert groups == [(1, 1, 1, 2), (3, 1, 2, 2)]
    for feature, message in (
        (SimpleNamespace(**{**vars(features[0]), "modality": "video"}), "got a video"),
        (SimpleNamespace(**{**vars(features[0]), "data": None}), "an image with data"),
        (*images((2, 2, 4)), "one frame, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            [*features_of.images(model, [], [feature])]


def test_groups_of_openpangu():
    grids = [("image", 1, 1, 1, 2), ("video", 5, 2, 1, 2), ("video", 30, 0, 1, 2)]
    model = SimpleNamespace(iter_mm_grid_thw=lambda _: iter(grids))
    groups = [*features_of.with_separators(model, [], [])]
    assert groups == [(1, 1, 1, 2), (5, 1, 1, 2), (9, 1, 1, 2), (30, 0, 1, 2)]


def test_groups_of_qwen3_vl(monkeypatch):
    """Frames of no token are left out, one of several frames' tokens is cut."""
    frames = []
    owner = SimpleNamespace(_iter_mm_grid_hw=lambda *_, **__: iter(frames))
    module = ModuleType("qwen3_vl")
    module.Qwen3VLForConditionalGeneration = owner
    monkeypatch.setattr(features_of, "import_module", lambda _: module)
    names = ("video_token_id", "vision_start_token_id", "vision_end_token_id")
    vision = SimpleNamespace(spatial_merge_size=2)
    config = SimpleNamespace(**dict.fromkeys(names, 0), vision_config=vision)
    model = SimpleNamespace(config=config)
    frames[:] = [(1, 1, 2, 2), (9, 1, 2, 0), (20, 1, 2, 4), (30, 0, 2, 0)]
    groups = [*features_of.between_markers(model, [], [])]
    assert groups == [(1, 1, 1, 2), (20, 1, 1, 2), (22, 1, 1, 2)]
    for odd in ((1, 2, 2, 3), (1, 2, 2, 5)):
        frames[:] = [odd]
        with pytest.raises(ValueError, match=r"which is no multiple of the 4 .* pruned"):
            [*features_of.between_markers(model, [], [])]
