"""Bad arguments and files get one line."""

import json

import pytest

from tests.cli.prompts import CONFIG, IMAGE, assert_refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--model", "gpt"],
            "argument --model: model_type 'gpt' is not a family that vecrope knows: "
            "vecrope.list_families() lists what is known",
            id="model",
        ),
        pytest.param(
            ["--model", "glm_image"],
            "'glm_image' has a rule of its own under convention 'transformers', which this command "
            "does not show: vecrope.get_rope_index numbers its prompts",
            id="rule of its own",
        ),
        pytest.param(
            ["--import", "no_such_module"],
            "argument --import: No module named 'no_such_module'",
            id="no module",
        ),
        pytest.param(["--bogus"], "unrecognized arguments: --bogus", id="option"),
        pytest.param(["--input"], "argument --input: expected one argument", id="no value"),
        pytest.param(
            ["--model", "glm4v", "--config", "c.json"],
            "argument --config: not allowed with argument --model",
            id="model and config",
        ),
        pytest.param(
            ["--input", "absent.json"], "absent.json: No such file or directory", id="no input"
        ),
        pytest.param(
            ["--config", "absent.json"], "absent.json: No such file or directory", id="no config"
        ),
        pytest.param(["--input", "."], ".: Is a directory", id="directory"),
        pytest.param(
            ["--plot", "picture"],
            "picture: the name must end in what to draw, such as .png or .svg",
            id="no suffix",
        ),
        pytest.param(
            ["--plot", "absent/a.png"], "absent/a.png: No such file or directory", id="no folder"
        ),
    ],
)
def test_bad_arguments_get_one_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert_refused(run(*arguments), message)


def test_a_picture_of_an_unknown_kind_gets_one_line(run, tmp_path):
    code, out, err = run("--plot", tmp_path / "a.xyz")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "a.xyz: Format 'xyz' is not supported" in err


@pytest.mark.parametrize("option", ["--input", "--config"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "not JSON: Expecting value: line 1 column 1 (char 0)", id="empty"),
        pytest.param(b"[1, ", "not JSON: Expecting value: line 1 column 5 (char 4)", id="cut off"),
        pytest.param(
            b'"\xe9"',
            "not UTF-8 text: 'utf-8' codec can't decode byte 0xe9 in position 1: invalid "
            "continuation byte",
            id="not UTF-8",
        ),
        pytest.param(b"[1]", "must hold a JSON object, got [1]", id="list"),
        pytest.param(
            b"[" + b"1, " * 50 + b"1]",
            "must hold a JSON object, got [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ...",
            id="long list",
        ),
    ],
)
def test_a_file_that_is_no_json_object_gets_one_line(run, tmp_path, option, content, message):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    assert_refused(run(option, path), f"{path}: {message}")


def test_a_file_nested_beyond_reason_gets_one_line(run, tmp_path):
    path = tmp_path / "file.json"
    path.write_text("[" * 200_000)
    code, out, err = run("--input", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{path}: not JSON: maximum recursion depth exceeded" in err


INTEGERS = "must be a list of integers or a list of such lists, got"
GRIDS = "must be a list of [t, h, w] lists of integers, got"


def case(name, message, **content):
    return pytest.param(content, message, id=name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        case("no ids", "the key 'input_ids' is missing"),
        case("null ids", "the key 'input_ids' is missing", input_ids=None),
        case(
            "unknown key",
            "unknown key 'pixels'; the keys are input_ids, attention_mask, mm_token_type_ids, "
            "image_grid_thw, video_grid_thw, second_per_grid_ts",
            pixels=None,
        ),
        case(
            "a number for seconds",
            "second_per_grid_ts must be a list of numbers, got 5",
            input_ids=[7],
            second_per_grid_ts=5,
        ),
        case(
            "true for seconds",
            "second_per_grid_ts must hold numbers, got true in entry 1",
            input_ids=[7],
            second_per_grid_ts=[1, True],
        ),
        case("a number for ids", f"input_ids {INTEGERS} 5", input_ids=5),
        case("an id among rows", f"input_ids {INTEGERS} 7", input_ids=[[7], 7]),
        case("an empty row", "input_ids must hold at least one token", input_ids=[[], []]),
        case("no row", "input_ids must hold at least one token", input_ids=[]),
        case(
            "rows of several lengths",
            "input_ids must have rows of one length, got 1 and 3; pad them, and say where in "
            "attention_mask",
            input_ids=[[7, 7, 7], [7], [7, 7]],
        ),
        case(
            "a fraction",
            "input_ids must hold integers, got 1.0 in row 1, entry 2",
            input_ids=[[7, 7, 7], [7, 7, 1.0]],
        ),
        case(
            "true for an id",
            "input_ids must hold integers, got true in row 0, entry 1",
            input_ids=[7, True],
        ),
        case(
            "an id beyond 64 bits",
            "input_ids must hold 64-bit integers, got 9223372036854775808 in row 0, entry 0",
            input_ids=[2**63],
        ),
        case(
            "a mask of text",
            'attention_mask must hold integers, got "1" in row 0, entry 0',
            input_ids=[7],
            attention_mask=["1"],
        ),
        case(
            "a mask of another length",
            "attention_mask must have the shape of input_ids (1, 2), got (1, 1)",
            input_ids=[7, 7],
            attention_mask=[1],
        ),
        case(
            "a mask of another code",
            "row 0, token 1: attention_mask must hold 0 or 1, got 2; the numbers of several "
            "sequences are sequence_ids",
            input_ids=[7, 7],
            attention_mask=[1, 2],
        ),
        case(
            "a number for grids", f"image_grid_thw {GRIDS} 4", input_ids=[IMAGE], image_grid_thw=4
        ),
        case(
            "one grid, flat",
            f"video_grid_thw {GRIDS} 1",
            input_ids=[IMAGE],
            video_grid_thw=[1, 2, 2],
        ),
        case(
            "a grid of two",
            "image_grid_thw row 1 must be [t, h, w], got [2, 2]",
            input_ids=[IMAGE],
            image_grid_thw=[[1, 2, 2], [2, 2]],
        ),
        case(
            "an image without a grid",
            "row 0 holds image tokens beyond the last grid: expected 0 for the 0 rows of "
            "image_grid_thw, got 1 in all (image_grid_thw was not given)",
            input_ids=[7, IMAGE],
        ),
        case(
            "a grid too large",
            "row 0, image 0: its grid (1, 4, 4) needs 4 tokens, got 3 in one run; was the prompt "
            "truncated inside the image?",
            input_ids=[7, IMAGE, IMAGE, IMAGE],
            image_grid_thw=[[1, 4, 4]],
        ),
        case(
            "a grid of odd sides",
            "image_grid_thw row 0 must have a height and width divisible by spatial_merge_size 2, "
            "got (1, 2, 3)",
            input_ids=[7, IMAGE],
            image_grid_thw=[[1, 2, 3]],
        ),
        case(
            "a grid left over",
            "video_grid_thw row 0 (1, 2, 2) is left over: expected 1 video tokens in all, "
            f"got 0 (no image_token_id {IMAGE} follows a video_start_token_id 151341 in input_ids)",
            input_ids=[7, 7],
            video_grid_thw=[[1, 2, 2]],
        ),
    ],
)
def test_a_prompt_that_is_wrong_gets_one_line(run_prompt, content, message):
    assert_refused(run_prompt(**content), f"prompt.json: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        case(
            "another family",
            "model_type 'gpt2' is not a family that vecrope knows: "
            "vecrope.list_families() lists what is known",
            model_type="gpt2",
        ),
        case(
            "a field missing",
            "the configuration has no field 'vision_config.spatial_merge_size' (of dict)",
            vision_config={},
        ),
        case("a text for an id", "image_token_id must be an int, got '5'", image_token_id="5"),
        case(
            "an id that is no id",
            f"image_token_id must be from 0 to 2**31 - 1, got {2**31}",
            image_token_id=2**31,
        ),
    ],
)
def test_a_configuration_that_is_wrong_gets_one_line(run, tmp_path, changes, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, **changes}))
    assert_refused(run("--config", path), f"{path}: {message}")
