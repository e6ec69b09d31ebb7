"""The kernels in a traced graph, as a compiler is given them."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("traced.py")
OF_EACH_PASS = {
    "mark": ["work"],
    "summarise": ["deltas", "work"],
    "write": ["deltas", "positions", "work"],
    "invalidate": ["deltas", "positions"],
}


def test_a_compiler_sees_the_launches_and_that_no_argument_is_written_to():
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TRITON_INTERPRET": "0"}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    graphs = [json.loads(line) for line in ended.stdout.splitlines()]
    assert Counter(graph["marker_rule"] for graph in graphs) == dict.fromkeys(
        ["count", "last", "none", "adjacent"], 4
    )
    for graph in graphs:
        passes = ["mark"] * (graph["marker_rule"] == "count") + ["summarise", "write"]
        passes += ["invalidate"] * graph["validate"]
        assert graph["kernels"] == [OF_EACH_PASS[name] for name in passes]
        assert graph["outputs"] == 2  # what is written to besides would be a third
