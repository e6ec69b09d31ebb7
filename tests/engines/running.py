"""Where the engines are, and how their requests are run."""

import json
import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOLDER = os.environ.get("VECROPE_ENGINES")
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")


def needs_engines(test):
    reason = "VECROPE_ENGINES does not name a folder that tests/engines/build.sh has made"
    return pytest.mark.engines(pytest.mark.skipif(FOLDER is None, reason=reason)(test))


def run(out, script, python, model, *options, path=()):
    """Run a script of this folder in an engine's environment, and return what it has seen."""
    folder = Path(FOLDER).absolute()
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "PYTHONPATH": os.pathsep.join(str(folder / each) for each in path),
    }
    command = [folder / python / "bin" / "python", HERE / script, folder / model, out, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text()), done.stdout + done.stderr
