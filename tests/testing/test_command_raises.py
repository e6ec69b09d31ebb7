"""The command line says what a function raised on the shortest prompt."""

from vecrope.testing.command import main


def refuses(input_ids, **_arguments):
    raise RuntimeError(f"no positions for {input_ids.shape[1]} tokens")


def test_the_error_of_a_function_is_shown_with_its_type(capsys):
    path = f"{__name__}:refuses"
    options = ["--model", "glm4v", "--convention", "sglang", "--examples", "1"]
    assert main([path, *options]) == 1
    shown = capsys.readouterr().out
    assert "  RuntimeError: no positions for 1 tokens\n    in refuses, " in shown
    assert "\n    t\n" in shown
    assert f"assert_matches(load('{path}'), prompt)" in shown
