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


def run(out, script, python, model, *options, path=(), **environment):
    """Run a script of this folder in an engine's environment.

    Returns:
        What the script has seen, its log, and the calls of vecrope in each of its processes.
    """
    folder = Path(FOLDER).absolute()
    calls = out.with_suffix(".calls")
    path = (HERE.parents[1] / "src", HERE / "probe", *path)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # Threads of tiny operators wait for each other where cores are busy.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        # Some of SGLang's functions are compiled, which takes minutes.
        "TORCHDYNAMO_DISABLE": "1",
        "VECROPE_CALLS": str(calls),
        "PYTHONPATH": os.pathsep.join(str(folder / each) for each in path),
        **environment,
    }
    command = [folder / python / "bin" / "python", HERE / script, folder / model, out, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    log = done.stdout + done.stderr
    out.with_suffix(".log").write_text(log)
    assert done.returncode == 0, log[-3000:]
    lines = calls.read_text().splitlines() if calls.exists() else []
    return json.loads(out.read_text()), log, [json.loads(line) for line in lines]
