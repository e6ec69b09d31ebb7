"""Requests of an engine, and the lines that say what their positions cost."""

import pytest
import torch

from bench import requests
from bench.requests import Cost

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
def test_calls_are_compared_before_they_are_timed(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        answer = torch.zeros(3, 2), torch.zeros(1, 1)
        assert len(requests.compare(lambda: answer, lambda: answer, 3)) == 2
        for other in ((torch.ones(3, 2), answer[1]), (answer[0], 1), (answer[0].int(), answer[1])):
            with pytest.raises(AssertionError):
                requests.compare(lambda: answer, lambda other=other: other, 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("options", [[], ["--busy"]])
@pytest.mark.parametrize("slower", [False, True])
def test_lines_and_exit_code(capsys, slower, options):
    cost = Cost("glm4v", "2 pictures", 300, 200.0 if slower else 90.0, 100.0)
    read = requests.options_of("SGLang", ("glm4v",), ["--sglang", "x", *options], None)
    assert (read.family, read.wheel.name) == (("glm4v",), "x")
    before = torch.get_num_threads()
    assert requests.report("SGLang 1", read, lambda: [cost], "SGLang") == slower
    assert torch.get_num_threads() == before
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split()[:5] == ["glm4v", "2", "pictures", "300", "200" if slower else "90"]
    assert line.endswith("slower") == slower
