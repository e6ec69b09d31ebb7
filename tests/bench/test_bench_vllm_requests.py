"""What a request's positions cost in vLLM: the requests, and the lines that are printed."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from own_support import VLLM_WHEEL, needs_vllm

from bench import vllm_requests
from bench.vllm_requests import Cost, Request


def simple(**fields):
    return SimpleNamespace(**fields)


CLASSES = simple(
    MultiModalFieldElem=lambda data, _: simple(data=data),
    MultiModalKwargsItem=dict,
    MultiModalFeatureSpec=simple,
    PlaceholderRange=lambda *place: place,
)


@pytest.mark.parametrize("family", vllm_requests.FAMILIES)
def test_requests_have_the_tokens_and_features_that_their_names_say(family):
    named = {each.name: each for each in vllm_requests.requests(family, 4000, CLASSES)}
    assert named["text"].features == []
    assert len(named["8 pictures"].features) == 8
    assert all(len(each.tokens) == 4000 for each in named.values())
    video = next(each for name, each in named.items() if "video" in name)
    assert {feature.modality for feature in video.features} == {"video"}
    for request in named.values():
        for feature in request.features:
            start, length, is_embed = feature.mm_position
            assert 0 <= start < start + length <= 4000
            assert is_embed is None or len(is_embed) == length


@pytest.mark.parametrize(
    ("with_plugin", "without", "slower"),
    [(114, 100, False), (116, 100, True), (1099, 1000, False), (1101, 1000, True)],
)
def test_what_is_slower(with_plugin, without, slower):
    cost = Cost("qwen2_vl", Request("text", [1], []), with_plugin, without)
    assert cost.is_slower == slower


@pytest.mark.parametrize("slower", [False, True])
def test_lines_and_exit_code(monkeypatch, capsys, slower):
    request = Request("2 pictures", [1] * 300, [])
    cost = Cost("glm4v", request, 200.0 if slower else 90.0, 100.0)
    monkeypatch.setattr(vllm_requests, "Wheel", lambda *_: simple(version="0.33.0"))
    monkeypatch.setattr(vllm_requests, "measure", lambda *_: [cost])
    assert vllm_requests.main(["--vllm", "wheel"]) == slower
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split()[:5] == ["glm4v", "2", "pictures", "300", "200" if slower else "90"]
    assert line.endswith("slower") == slower


@needs_vllm
def test_the_wheels_methods_are_measured(monkeypatch):
    monkeypatch.setattr(vllm_requests.sys, "modules", dict(vllm_requests.sys.modules))
    wheel = vllm_requests.Wheel(Path(VLLM_WHEEL), "vllm")
    costs = [*vllm_requests.measure(wheel, ("qwen3_vl",), (300,), 1)]
    assert costs
    assert all(cost.without > 0 for cost in costs)
