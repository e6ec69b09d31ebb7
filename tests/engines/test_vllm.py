"""A real vLLM: tokens, log-probabilities and positions with the plugin are those without."""

import pytest

from tests.engines.running import FAMILIES, needs_engines, run

RELEASES = {"0.32": (), "0.33": ("vllm-0.33",)}
each_release = pytest.mark.parametrize("release", RELEASES)
each_family = pytest.mark.parametrize("family", FAMILIES)


def seen(tmp_path, family, release, *options):
    found, log = run(
        *(tmp_path / "seen.json", "vllm_run.py", "vllm", f"models/{family}"),
        *options,
        path=RELEASES[release],
    )
    assert "vecrope numbers the prompts of " in log
    return found


@needs_engines
@each_release
@each_family
def test_requests_get_the_same_answers(tmp_path, family, release):
    check_requests(seen(tmp_path, family, release))


@needs_engines
@each_release
@each_family
def test_chunks_cached_prefixes_and_preempted_requests_get_the_same_answers(
    tmp_path, family, release
):
    check_small(seen(tmp_path, family, release, "small"))


def check_requests(found):
    names, own = found["names"], found["vLLM"]
    assert own["number"] == 0
    assert found["vecrope"]["number"] == len(names)
    for phase in ("vecrope", "rule", "refused"):
        for name, *pairs in zip(
            names,
            zip(found[phase]["answers"], own["answers"], strict=True),
            zip(found[phase]["positions"], own["positions"], strict=True),
            strict=True,
        ):
            assert all(ours == theirs for ours, theirs in pairs), (phase, name)
    assert found["vecrope"]["batch"] == own["batch"]
    # Few groups are left to vLLM. Here 24 pictures are many, and a long clip of frames.
    assert 0 < found["rule"]["number"] < len(names) / 2
    # What is refused was counted, once a prompt, and answered.
    assert (
        sum(found["refused"]["refusals"].values()) == 2 * len(names) or found["refused"]["number"]
    )
    # Equal tokens prove something: wrong positions change them.
    wrong = found["wrong"]
    changed = [
        name
        for name, ours, theirs in zip(names, wrong["answers"], own["answers"], strict=True)
        if ours != theirs
    ]
    assert "text" not in changed
    assert {"two pictures", "24 pictures", "both"} <= set(changed)


def check_small(found):
    own = found["vLLM"]
    for phase in ("vecrope", "rule", "refused"):
        assert found[phase]["answers"] == own["answers"], phase
        assert found[phase]["positions"] == own["positions"], phase
    assert found["vecrope"]["number"] == len(own["answers"])
    assert found["vecrope"]["cached"] > 0
    assert found["vecrope"]["preemptions"] > 0
    assert found["wrong"]["answers"] != own["answers"]
