"""The command line as a process."""

import os
import runpy
import subprocess
import sys
from importlib.metadata import version

import pytest

import vecrope
from tests.cli.prompts import DEMO_SEGMENTS
from vecrope.__main__ import main

# The process


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"vecrope {version('vecrope')}\n"


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert exit_.value.code == 0
    assert "the family, with its default ids (default: glm4v), one of: bailing" in out
    assert "whose answers to give (default: the first of transformers, sglang and vllm that" in out


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-m", "vecrope", "--model", "glm_ocr"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8",
                          env={**os.environ, "PYTHONIOENCODING": "utf-8"}, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("A GLM-OCR conversation: ")
    assert DEMO_SEGMENTS in done.stdout


def test_the_exit_code_is_mains(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vecrope", "--model", "gpt"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(vecrope.__main__.__file__, run_name="__main__")
    assert exit_.value.code == 2
    assert "model_type 'gpt' is not a family" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_fault(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main([]) == 141
