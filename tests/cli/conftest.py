import json
from functools import partial

import pytest

from vecrope.__main__ import main
from vecrope.cli import confirm


@pytest.fixture(autouse=True)
def _few_times(monkeypatch):
    """Take each time from as few calls as the command ever makes."""
    monkeypatch.setattr(confirm, "_time", partial(confirm._time, budget=0))


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def run_prompt(run, tmp_path, monkeypatch):
    def run_prompt(*arguments, **content):
        (tmp_path / "prompt.json").write_text(json.dumps(content))
        if not {"--convention", "--config"} & set(arguments):
            arguments = (*arguments, "--convention", "sglang")
        return run("--input", "prompt.json", *arguments)

    monkeypatch.chdir(tmp_path)

    return run_prompt
