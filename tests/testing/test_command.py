"""`python -m vecrope.testing`, on functions that are right and on ones with a planted fault."""

import json
from pathlib import Path
from runpy import run_module

import pytest

import vecrope.testing
from tests.testing import planted
from vecrope.testing.command import load, main

GLM4V = ["--model", "glm4v", "--convention", "sglang", "--examples", "40"]
PLANTED = "tests.testing.planted"


def test_a_sound_function_passes_every_property(capsys):
    assert main([f"{PLANTED}:sound", *GLM4V, "--examples", "2", "--slow"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert {line.split()[0] for line in lines} == {"passed"}


def test_a_planted_fault_is_shown_as_symbols_and_as_a_snippet_that_fails(capsys):
    assert main([f"{PLANTED}:transposed", *GLM4V]) == 1
    out = capsys.readouterr().out
    readme = Path(vecrope.testing.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert out.startswith(readme[readme.index("FAILED") : readme.rindex("```")])
    assert "\n    <II>\n" in out
    assert "passed the arguments are left as they were" in out
    snippet = out[out.index("from vecrope import") : out.index("passed the arguments")]
    with pytest.raises(AssertionError, match="position_ids differ in row 0"):
        exec(snippet, {})


def test_arguments_that_a_function_writes_to_are_named(capsys):
    assert main([f"{PLANTED}:writes", *GLM4V]) == 1
    assert "FAILED the arguments are left as they were" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "KeyError: 'pixels'\n    in raises, {file}:"),
        ("positions_alone", "must return position_ids and rope_deltas, got Tensor"),
        ("three_values", "must return position_ids and rope_deltas, got 3 values"),
        ("lists", "position_ids must be a tensor, got list"),
    ],
)
def test_a_function_that_raises_or_returns_something_else_is_told_so(capsys, function, message):
    assert main([f"{PLANTED}:{function}", *GLM4V, "--examples", "1"]) == 1
    assert message.format(file=planted.__file__) in capsys.readouterr().out


def test_a_family_without_default_ids_is_described_by_a_file(capsys, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(planted.ISAAC))
    assert main([f"{PLANTED}:isaac", "--config", str(config), "--examples", "4", "--slow"]) == 0
    assert capsys.readouterr().out.count("passed") == 5
    assert main([f"{PLANTED}:positions_alone", "--config", str(config), "--examples", "5"]) == 1
    assert f"load('{PLANTED}:positions_alone', config='{config}')" in capsys.readouterr().out
    config.write_text("[]")
    with pytest.raises(SystemExit):
        main([f"{PLANTED}:isaac", "--config", str(config)])
    assert "must hold a JSON object, got []" in capsys.readouterr().err


def test_a_method_of_a_model_has_the_configuration_of_the_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"image_token_id": 77}))
    path = "transformers.models.glm4v.modeling_glm4v:Glm4vModel.get_rope_index"
    adapter = f"{PLANTED}:image_token_of"
    assert load(path, adapter)() == 151343
    assert load(path, adapter, str(tmp_path / "config.json"))() == 77


def test_the_module_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["", f"{PLANTED}:sound"])
    with pytest.raises(SystemExit, match="2"):
        run_module("vecrope.testing", run_name="__main__")
    assert "error: one of the arguments --model --config is required" in capsys.readouterr().err


def test_its_import_runs_nothing():
    assert run_module("vecrope.testing.__main__")["main"] is main


def test_the_same_seed_draws_the_same_prompts(capsys):
    outs = []
    for seed in ("1", "1"):
        main([f"{PLANTED}:transposed", *GLM4V, "--seed", seed])
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1]


def test_a_function_of_other_names_takes_an_adapter(capsys):
    assert main([f"{PLANTED}:of_tokens", *GLM4V, "--adapter", f"{PLANTED}:adapter"]) == 0
    with pytest.raises(SystemExit):
        main([f"{PLANTED}:of_tokens", *GLM4V])
    assert "needs tokens, mask, images, videos, a prompt has input_ids" in capsys.readouterr().err


def test_a_method_of_a_model_of_transformers_needs_no_model(capsys):
    path = "transformers.models.glm4v.modeling_glm4v:Glm4vModel.get_rope_index"
    options = ["--model", "glm4v", "--convention", "transformers", "--examples", "20"]
    main([path, *options])
    out = capsys.readouterr().out
    assert "passed conversations are answered as by the reference" in out
    assert "passed the arguments are left as they were" in out


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("vecrope", "a function is named package.module:function, got 'vecrope'"),
        ("vecrope.nothing:f", "there is no vecrope.nothing:f: No module named"),
        ("vecrope:nothing", "there is no vecrope:nothing: module 'vecrope' has no attribute"),
        ("vecrope:__name__", "vecrope:__name__ must be a function, got str"),
    ],
)
def test_what_is_no_function_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        load(path)
