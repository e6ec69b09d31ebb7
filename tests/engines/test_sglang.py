"""A real SGLang: tokens, log-probabilities and positions with vecrope are those without."""

from functools import cache

import pytest

from tests.engines.running import FAMILIES, HERE, needs_engines, run

CHUNK = 128  # as in sglang_run.py
# Requests with pictures alone are numbered by their places, which are never refused.
BY_PLACES = ("qwen3_vl",)
# One short clip with seconds, and nothing else, is left to SGLang.
CLIP_LEFT = ("qwen2_5_vl",)


@pytest.fixture(scope="module")
def seen_of(tmp_path_factory):
    """Return what a family's engine has shown, run once."""
    return cache(lambda family: seen(tmp_path_factory.mktemp(family), family))


@needs_engines
@pytest.mark.parametrize("family", FAMILIES)
def test_requests_get_the_same_answers(seen_of, family):
    found, log, calls = seen_of(family)
    check(found, family)
    # Each prompt and turn once a pass, as SGLang remembers them, in all passes but SGLang's own.
    by_places = 4 * (num_pictures(found) + 2) if family in BY_PLACES else 0
    assert [call["function"] for call in calls].count("positions_of_groups") == by_places
    assert "vecrope answers for SGLang's get_rope_index" in log
    # Two kinds of faults, or one where there is no stray placeholder.
    assert log.count("vecrope refuses a request") == 2 - (family == "glm4v")
    assert "Testing retraction. #retracted_reqs: 1" in log
    assert f"Prefill batch, #new-seq: 1, #new-token: {CHUNK}," in log


@needs_engines
def test_the_scheduler_numbers_requests_without_positions(seen_of, tmp_path):
    found, _, calls = seen_of("qwen2_vl")
    without, log, calls_without = seen(tmp_path, "qwen2_vl", SGLANG_PLUGINS="none")
    assert {call["child"] for call in calls} == {True, False}  # the scheduler is a child
    assert not calls_without
    assert "vecrope answers" not in log
    assert found["missing"]["answers"] == without["missing"]["answers"]
    assert found["missing"]["turns"] == without["missing"]["turns"]


def seen(folder, family, **environment):
    return run(
        *(folder / "seen.json", "sglang_run.py", "sglang", f"models/{family}"),
        path=(HERE / "stubs",),
        **environment,
    )


def check(found, family):
    own = found["SGLang"]
    num_media = len(found["names"]) - 1  # all but text
    assert found["by plugin"]
    assert len(found["replaced"]) == 5
    assert len(own["positions"]) == 2 * num_media
    for phase in ("vecrope", "refused"):
        for name, ours, theirs in zip(
            found["names"], found[phase]["answers"], own["answers"], strict=True
        ):
            assert ours == theirs, (phase, name)
        for kind in ("positions", "turns", "positions of turns"):
            assert found[phase][kind] == own[kind], (phase, kind)
        assert are_close(found[phase]["batch"], own["batch"]), phase
    for phase in ("vecrope", "refused", "SGLang"):
        assert found[phase]["cached"] >= 64, phase
        assert found[phase]["inside"] > 0, phase
    # What is refused is counted, once a prompt, and answered: a stray placeholder, and all.
    assert list(found["vecrope"]["refusals"].values()) == [1] * (family != "glm4v")
    assert found["vecrope"].get("stray") == own.get("stray")
    num_refused = 2 * num_media + 2
    if family in BY_PLACES:
        num_refused = 2 * (num_media - num_pictures(found))
    if family in CLIP_LEFT:
        num_refused -= 2
    assert list(found["refused"]["refusals"].values()) == [num_refused]
    # Equal tokens prove something: wrong positions change them.
    wrong = found["wrong"]
    for name, theirs, changed in zip(found["names"], own["answers"], wrong["answers"], strict=True):
        assert (theirs == changed) == (name == "text") or name.startswith("drawn"), name
    assert all(wrong[kind] != own[kind] for kind in ("batch", "turns"))


def num_pictures(found):
    """Return how many prompts have pictures and nothing else."""
    return len(found["names"]) - len(("text", "clip", "both"))


def are_close(ours, theirs):
    """Compare batches, whose requests run together as they arrive, which rounding depends on."""
    pairs = [
        (*ours, *theirs)
        for answers in zip(ours, theirs, strict=True)
        for ours, theirs in zip(*answers, strict=True)
    ]
    return all(token == other and abs(a - b) < 1e-4 for token, a, other, b in pairs)
