"""What `python -m bench.gpu` measures; the measuring itself needs a GPU."""

import argparse

import pytest

from bench import gpu
from bench.runner import describe_environment
from bench.workloads import SIZES


def options_of(**changes):
    wheels = dict.fromkeys(gpu.WHEEL_NAMES)
    return argparse.Namespace(**{"kind": None, "family": None, "csv": None, **wheels, **changes})


def test_every_workload_is_known():
    assert {name for names, _ in gpu.WORKLOADS.values() for name in names} <= set(SIZES)


@pytest.mark.parametrize(
    ("changes", "number"),
    [({}, 5 * 11 + 7 * 2), ({"family": ["glm4v"]}, 11 + 7 * 2), ({"kind": ["own-rules"]}, 7 * 2)],
)
def test_kinds_and_families_can_be_chosen(changes, number):
    assert len([*gpu._points(options_of(**changes))]) == number


def test_behind_the_time_limit_no_row_is_begun(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "describe_environment", lambda *_: describe_environment("cpu", 1))
    options = options_of(kind=["own-rules"], seconds=0.1)
    assert gpu.rows(options, stop=0)
    assert capsys.readouterr().out.count("no time is left for") == 14
