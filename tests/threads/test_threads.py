"""No small call starts torch's threads, whatever it computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_no_small_call_starts_threads():
    """In a process of its own, since torch starts its threads once and keeps them."""
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT, ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-m", "tests.threads.watch"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    small, of_small, larger, of_larger = map(int, done.stdout.split())
    assert small > 500
    assert larger > 20
    assert of_small > 20 * small
    assert of_larger > 20 * larger
