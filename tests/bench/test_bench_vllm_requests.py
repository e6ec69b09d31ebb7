"""What a request's positions cost in vLLM: its features, and the methods of the wheel."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from own_support import VLLM_WHEEL, needs_vllm

from bench import requests, vllm_requests


def simple(**fields):
    return SimpleNamespace(**fields)


CLASSES = simple(
    MultiModalFieldElem=lambda data, _: simple(data=data),
    MultiModalKwargsItem=dict,
    MultiModalFeatureSpec=simple,
    PlaceholderRange=lambda *place: place,
)


@pytest.mark.parametrize("family", vllm_requests.ENGINE.families)
def test_features_say_where_the_items_of_a_request_are(family):
    named = {
        name: vllm_requests.features_of(row, CLASSES)
        for name, row in requests.rows(family, 4000, "vllm")
    }
    found = {name: [*features] for name, features in named.items()}
    assert found["text"] == []
    assert len(found["8 pictures"]) == 8
    (video,) = found["1 video of 16 frames"]
    assert video.modality == "video"
    for features in found.values():
        for feature in features:
            start, length, is_embed = feature.mm_position
            assert 0 <= start < start + length <= 4000
            assert is_embed is None or len(is_embed) == length


@needs_vllm
@pytest.mark.parametrize("family", vllm_requests.ENGINE.families)
def test_the_wheels_methods_are_measured(monkeypatch, family):
    monkeypatch.setattr(vllm_requests.sys, "modules", dict(vllm_requests.sys.modules))
    wheel = requests.Wheel(Path(VLLM_WHEEL), "vllm")
    costs = [*requests.measure(vllm_requests.ENGINE, wheel, (family,), (300,), 1)]
    assert costs
    assert all(cost.without > 0 for cost in costs)
