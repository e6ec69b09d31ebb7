"""A real SGLang: tokens, log-probabilities and positions with vecrope are those without."""

import pytest

from tests.engines.running import FAMILIES, HERE, needs_engines, run

# Their pictures are numbered without the functions that vecrope replaces.
WITHOUT_FUNCTIONS = ("qwen3_vl",)


@needs_engines
@pytest.mark.parametrize("family", FAMILIES)
def test_requests_get_the_same_answers(tmp_path, family):
    found, log = run(
        *(tmp_path / "seen.json", "sglang_run.py", "sglang", f"models-sglang/{family}"),
        path=(HERE / "stubs",),
    )
    assert "vecrope answers for SGLang's get_rope_index" in log
    check_requests(found, family)


def check_requests(found, family):
    assert found["by plugin"]
    assert len(found["replaced"]) == 4
    own = found["SGLang"]["rows"]
    assert sum(row[1] is not None for row in own) == len(own) - 1  # all but text
    for phase in ("vecrope", "refused"):
        for name, ours, theirs in zip(found["names"], found[phase]["rows"], own, strict=True):
            assert ours == theirs, (phase, name)
    assert found["vecrope"]["refusals"] == {}
    refused = sum(found["refused"]["refusals"].values())
    assert refused == (0 if family in WITHOUT_FUNCTIONS else len(own) - 1)
