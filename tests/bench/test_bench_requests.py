"""Requests of an engine, and the lines that say what their positions cost."""

from types import SimpleNamespace

import pytest
import torch

from bench import requests, sglang_requests, vllm_requests
from bench.requests import Cost, Engine

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "glm4v", "qwen3_omni_moe")


@pytest.mark.parametrize("size", requests.SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_requests_have_what_their_names_say(family, size):
    named = dict(requests.rows(family, size, "sglang"))
    assert not named["text"].runs
    assert len(named["8 pictures"].images) == 8
    assert all(len(row) == size for row in named.values())
    videos = [row for name, row in named.items() if "video" in name]
    assert len(videos) > 1
    for row in (*videos, named["2 pictures"]):
        assert bool(row.videos) != bool(row.images)
    placeholders = sum(stop - start for start, stop, _ in named["2 pictures"].runs)
    assert size / 4 < placeholders <= size / 2


@pytest.mark.parametrize(
    ("with_vecrope", "without", "slower"),
    [(114, 100, False), (116, 100, True), (1099, 1000, False), (1101, 1000, True)],
)
def test_what_is_slower(with_vecrope, without, slower):
    assert Cost("qwen2_vl", "text", 1, with_vecrope, without).is_slower == slower


@pytest.mark.parametrize("threads", [1, 2])
def test_answers_are_compared_and_calls_timed(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        answer = torch.zeros(3, 2), torch.zeros(1, 1)
        requests.check_equal(lambda: answer, lambda: answer)
        assert len(requests.cpu_times(lambda: answer, lambda: answer, 3)) == 2
        for other in ((torch.ones(3, 2), answer[1]), (answer[0], 1), (answer[0].int(), answer[1])):
            with pytest.raises(ValueError, match="s differ: the engine has"):
                requests.check_equal(lambda: answer, lambda other=other: other)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("options", [[], ["--busy"]])
@pytest.mark.parametrize("slower", [False, True])
def test_lines_and_exit_code(capsys, monkeypatch, slower, options):
    engine = Engine("SGLang", ("glm4v",), lambda *_: lambda _: (lambda: (torch.ones(2), 0),) * 2)
    monkeypatch.setattr(requests, "Wheel", lambda *_: SimpleNamespace(version="1"))
    cost = 200.0 if slower else 90.0, 100.0
    monkeypatch.setattr(requests, "cpu_times", lambda *_: cost)
    before = torch.get_num_threads()
    assert requests.main(engine, None, ["--sglang", "x", "--size", "300", *options]) == slower
    assert torch.get_num_threads() == before
    line = capsys.readouterr().out.splitlines()[3 + 2]
    assert line.split()[:5] == ["glm4v", "2", "pictures", "300", "200" if slower else "90"]
    assert line.endswith("slower") == slower


def test_every_family_of_an_engine_has_requests():
    for engine in (sglang_requests.ENGINE, vllm_requests.ENGINE):
        for family in engine.families:
            assert dict(requests.rows(family, 300, engine.name.lower()))
