"""A real vLLM: tokens, log-probabilities and positions with the plugin are those without."""

import pytest

from tests.engines.running import FAMILIES, needs_engines, run

RELEASES = {"0.32": (), "0.33": ("vllm-0.33",)}
each_release = pytest.mark.parametrize("release", RELEASES)
each_family = pytest.mark.parametrize("family", FAMILIES)


@needs_engines
@each_release
@each_family
def test_requests_get_the_same_answers(tmp_path, family, release):
    found, log, _ = seen(tmp_path, family, release)
    check(found)
    assert "vecrope numbers the prompts of " in log
    assert log.count("vecrope refuses a request") == 1


@needs_engines
def test_an_engine_in_its_own_process_has_the_plugin(tmp_path):
    found, log, calls = served(tmp_path)
    assert "vecrope numbers the prompts of Qwen2VLForConditionalGeneration" in log
    assert calls
    assert all(call == {"function": "positions_of_groups", "child": True} for call in calls)

    without, log, calls = served(tmp_path / "off", VLLM_PLUGINS="")
    assert found["answers"] == without["answers"]
    assert "vecrope numbers" not in log
    assert not calls


def served(folder, **environment):
    return seen(folder, "qwen2_vl", "0.33", VLLM_ENABLE_V1_MULTIPROCESSING="1", **environment)


def seen(folder, family, release, **environment):
    folder.mkdir(exist_ok=True)
    return run(
        *(folder / "seen.json", "vllm_run.py", "vllm", f"models/{family}"),
        path=RELEASES[release],
        **environment,
    )


def check(found):
    own = found["vLLM"]
    requests = len(own["positions"])
    assert requests == 2 * len(found["names"]) + 6
    for phase in ("vecrope", "rule", "refused"):
        for name, ours, theirs in zip(
            found["names"], found[phase]["answers"], own["answers"], strict=True
        ):
            assert ours == theirs, (phase, name)
        for kind in ("positions", "batch", "turns", "preempted"):
            assert found[phase][kind] == own[kind], (phase, kind)
    for phase in ("vecrope", "refused", "vLLM"):
        assert found[phase]["cached"] >= 64, phase
        assert found[phase]["preemptions"] > 0, phase
        assert found[phase]["inside"] > 0, phase
    assert found["vecrope"]["number"] == requests
    assert own["number"] == 0
    # Prompts of few groups are left to vLLM.
    assert 0 < found["rule"]["number"] < requests
    # What is refused is counted, once a prompt, and answered.
    assert found["vecrope"]["refusals"] == {}
    assert list(found["refused"]["refusals"].values()) == [requests]
    # Equal tokens prove something: wrong positions change them.
    wrong = found["wrong"]
    for name, theirs, changed in zip(found["names"], own["answers"], wrong["answers"], strict=True):
        assert (theirs == changed) == (name == "text") or name.startswith("drawn"), name
    assert all(wrong[kind] != own[kind] for kind in ("batch", "turns", "preempted"))
