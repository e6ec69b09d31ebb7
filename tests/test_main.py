# ruff: noqa: RUF001 - the multiplication sign is the right sign for a grid
import html
import json
import os
import re
import runpy
import subprocess
import sys
from importlib.metadata import version

import matplotlib
import pytest
import torch
from oracles import WITHOUT_DEFAULT, each_core
from PIL import Image

import vecrope
from vecrope.__main__ import main
from vecrope.cli.demo import NAMES, conversation
from vecrope.cli.prompt import image_markers
from vecrope.families import FAMILIES
from vecrope.spec import MRopeSpec
from vecrope.testing import reference

IMAGE, BEGIN, END, START, STOP = 151343, 151339, 151340, 151341, 151342  # glm4v
IDS = {"t": 7, "_": 0, "I": IMAGE, "<": BEGIN, ">": END, "[": START, "]": STOP}
CONFIG = {
    "model_type": "glm4v",
    "image_token_id": 5,
    "video_start_token_id": 3,
    "video_end_token_id": 4,
    "vision_config": {"spatial_merge_size": 2},
}


def ids(symbols):
    return [IDS[symbol] for symbol in symbols]


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
        return run("--input", "prompt.json", *arguments)

    monkeypatch.chdir(tmp_path)

    return run_prompt


def without_times(out):
    return out[: out.index("\n  vecrope, eager")]


def section(out, first, last):
    start = out.index(first)
    return out[start : out.index(last, start)].strip("\n").splitlines()


def words(line):
    return line.split()


DEMO_SEGMENTS = """\
row   tokens      what              grid h × w   base   span
  0      0..5     text                              0      5
  0      5..221   image 0              12 × 18      5     18
  0    221..247   text                             23     26
  0    247..343   video 0 frame 0       8 × 12     49     12
  0    343..346   text                             61      3
  0    346..442   video 0 frame 1       8 × 12     64     12
  0    442..445   text                             76      3
  0    445..541   video 0 frame 2       8 × 12     79     12
  0    541..552   text                             91     11
"""

DEMO_POSITIONS = """\
         text                  image 0                               text
token    0   1   2   3   4     5   6   7 …  22  23  24 … 219 220   221 222 223 … 245 246
         t   t   t   t   <     I   I   I …   I   I   I …   I   I     >   t   t …   [   <
    t    0   1   2   3   4     5   5   5 …   5   5   5 …   5   5    23  24  25 …  47  48
    h    0   1   2   3   4     5   5   5 …   5   6   6 …  16  16    23  24  25 …  47  48
    w    0   1   2   3   4     5   6   7 …  22   5   6 …  21  22    23  24  25 …  47  48
"""


def test_the_conversation_is_laid_out_and_confirmed(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out.startswith("A GLM-4.1V conversation: a 504 × 336 picture, a 336 × 224 clip of 6")
    assert "\nmodel glm4v, convention sglang, 1 row of 552 tokens\n" in out
    assert f"\n\n{DEMO_SEGMENTS}\n" in out
    assert "\nrow 0: rope_delta -450, so that the token after these 552 gets position 102\n" in out
    assert f"\n\n{DEMO_POSITIONS}\n" in out
    assert (
        "\nConfirmed: all 1656 positions and every rope_delta equal those of the loop\n"
        "in vecrope.testing.reference, which is written to be read, not to be fast.\n"
    ) in out
    *_, library, loop, ratio = out.splitlines()
    for line, name in ((library, "vecrope, eager, checks included"), (loop, "the loop, plain Py")):
        assert line.startswith(f"  {name}")
        value, unit, *rest = words(line)[-6:]
        assert float(value) > 0
        assert unit in ("µs", "ms")
        assert rest[:2] == ["median", "of"]
    assert words(ratio)[:3] == ["loop", "/", "vecrope"]
    assert ratio.endswith("   one CPU thread each")


NO_VIDEOS = [("cohere_compass", "vllm")]
GLM = [name for name in NAMES if name.startswith("glm")]


@pytest.mark.parametrize("model", GLM)
def test_the_conversation_is_in_the_layout_of_glms_chat_template(model):
    spec = MRopeSpec.for_model(model, convention="sglang")
    begin, end = image_markers(spec)
    tokens = conversation(spec).input_ids[0].tolist()
    opening = [begin - 8, begin - 6, begin - 3, 198, begin]
    assert tokens[:221] == [*opening, *[spec.image_token_id] * 216]
    assert tokens[221] == end
    frame = [begin, *[spec.image_token_id] * 96, end]
    video = tokens[tokens.index(spec.video_start_token_id) + 1 :]
    video = video[: video.index(spec.video_end_token_id)]
    assert video == [*frame, video[98], *frame, video[197], *frame, video[296]]
    assert tokens[-2:] == [begin - 2, 198]
    assert tokens.count(spec.image_token_id) == 216 + 3 * 96


def test_no_line_is_too_long_or_ends_in_a_space(run):
    for line in run()[1].splitlines():
        assert len(line) <= 100
        assert line == line.rstrip()


@each_core
def test_a_conversation_of_every_family_with_default_ids_is_confirmed(run, model_type, convention):
    code, out, err = run("--model", model_type, "--convention", convention)
    if model_type not in NAMES:
        assert code == 2
        assert "argument --model: invalid choice" in err
    elif (model_type, convention) in WITHOUT_DEFAULT:
        assert code == 2
        assert "error: argument --model: 'paddleocr_vl' has no default tokens_per_second" in err
    else:
        assert (code, err) == (0, "")
        clip = ", a 336 × 224 clip of 6 frames" * ((model_type, convention) not in NO_VIDEOS)
        assert out.startswith(f"A {NAMES[model_type]} conversation: a 504 × 336 picture{clip}")
        assert "\nConfirmed: all " in out
        assert "\n  0      " in out


@pytest.mark.parametrize(
    ("model", "video"),
    [
        ("qwen2_vl", ["<" + "V" * 288 + ">"]),
        ("qwen3_vl", ["t<" + "V" * 96 + ">"] * 3),
        ("cosmos3_edge", ["t<" + "V" * 96 + ">"] * 3),
    ],
)
def test_a_clip_of_another_family_is_laid_out_as_its_processor_does(model, video):
    spec = MRopeSpec.for_model(model, convention="transformers")
    start, end = image_markers(spec)
    symbols = {spec.image_token_id: "I", spec.video_token_id: "V", start: "<", end: ">"}
    tokens = conversation(spec).input_ids[0].tolist()
    row = "".join(symbols.get(token, "t") for token in tokens)
    assert row == f"t<{'I' * 216}>{'t' * (7 + 1 + 12 + 1)}{''.join(video)}{'t' * (6 + 1)}"


def test_a_clip_of_one_block_is_laid_out_between_its_markers():
    spec = MRopeSpec.for_model("ernie4_5_vl_moe", convention="sglang")
    prompt = conversation(spec)
    tokens = prompt.input_ids[0].tolist()
    start = tokens.index(spec.video_start_token_id)
    assert tokens[start + 1 : start + 289] == [spec.image_token_id] * 288
    assert tokens[start + 289] == spec.video_end_token_id
    assert prompt.video_grid_thw.tolist() == [[6, 16, 24]]


def test_a_family_with_a_rule_of_its_own_is_not_confirmed(run_prompt, tmp_path):
    config = {
        "model_type": "isaac",
        "image_token_id": 5,
        "vision_config": {"pixel_shuffle_scale_factor": 2},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, _, err = run_prompt(
        *("--config", "config.json", "--convention", "vllm"), input_ids=[1, 2]
    )
    assert code == 2
    assert "error: prompt.json: 'isaac' is numbered by a rule of its own under convention" in err


def test_a_family_without_a_layout_needs_a_prompt(run, tmp_path):
    path = tmp_path / "config.json"
    ids = {"image_token_id": 5, "video_token_id": 6}
    config = {"model_type": "keye", **ids, "vision_config": {"spatial_merge_size": 2}}
    path.write_text(json.dumps(config))
    code, _, err = run("--config", path, "--convention", "vllm")
    assert code == 2
    assert "error: no conversation can be laid out for 'keye': use --input" in err


def test_a_block_is_shown_with_its_seconds(run_prompt):
    start, video, end = 151652, 151656, 151653
    code, out, err = run_prompt(
        *("--model", "qwen2_5_vl"),
        input_ids=[7, start, video, video, end, 8],
        attention_mask=[0, 1, 1, 1, 1, 1],
        video_grid_thw=[[2, 2, 2]],
        second_per_grid_ts=[0.5],
    )
    assert (code, err) == (0, "")
    assert section(out, "row 0:", "Confirmed") == [
        "row 0: rope_delta 1, so that the token after these 6 gets position 7",
        "",
        "       text   video 0   text",
        "token  0 1    2 3       4 5",
        "       t <    V V       > t",
        "    t  0 1    2 4       5 6",
        "    h  0 1    2 2       5 6",
        "    w  0 1    2 2       5 6",
    ]


@pytest.mark.parametrize("model", GLM)
def test_a_models_own_configuration_gives_what_its_name_gives(run, tmp_path, model):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model).to_dict()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config, default=str))
    assert image_markers(MRopeSpec.from_config(config, convention="sglang")) == (
        config["image_start_token_id"],
        config["image_end_token_id"],
    )
    by_name, by_config = run("--model", model), run("--config", path)
    assert by_name[0] == by_config[0] == 0
    assert f"\nmodel {model}, convention sglang" in by_name[1]
    assert without_times(by_name[1]) == without_times(by_config[1])


def test_the_configurations_merge_size_is_used(run, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, "vision_config": {"spatial_merge_size": 4}}))
    code, out, _ = run("--config", path)
    assert code == 0
    assert "a 1008 × 672 picture" in out
    assert DEMO_SEGMENTS in out


def test_a_row_of_a_file_is_shown_token_by_token(run_prompt):
    code, out, err = run_prompt(input_ids=ids("t<IIIIII>t"), image_grid_thw=[[1, 4, 6]])
    assert (code, err) == (0, "")
    assert out.startswith("prompt.json\nmodel glm4v, convention sglang, 1 row of 10 tokens\n")
    assert section(out, "row 0:", "Confirmed") == [
        "row 0: rope_delta -3, so that the token after these 10 gets position 7",
        "",
        "       text   image 0       text",
        "token  0 1    2 3 4 5 6 7   8 9",
        "       t <    I I I I I I   > t",
        "    t  0 1    2 2 2 2 2 2   5 6",
        "    h  0 1    2 2 2 3 3 3   5 6",
        "    w  0 1    2 3 4 2 3 4   5 6",
    ]


ROWS = {
    "input_ids": [ids("__t<II>"), ids("ttt<I>t"), ids("_______")],
    "attention_mask": [[0, 0, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1, 1], [0] * 7],
    "image_grid_thw": [[1, 2, 4], [1, 2, 2]],
}


@pytest.mark.parametrize(
    ("convention", "padding", "deltas"),
    [
        ("sglang", "1", (("-2", "7", "5"), ("-1", "7", "6"), ("-7", "7", "0"))),
        ("transformers", "0", (("0", "5", "5"), ("0", "6", "6"), ("0", "0", "0"))),
    ],
)
def test_every_row_of_a_batch_is_shown_with_its_masked_tokens(
    run_prompt, convention, padding, deltas
):
    code, out, _ = run_prompt("--convention", convention, **ROWS)
    assert code == 0
    assert f"convention {convention}, 3 rows of 7 tokens" in out
    assert [words(line) for line in section(out, "  0   ", "Positions")] == [
        ["0", "0..2", "masked", padding, "0"],
        ["0", "2..4", "text", "0", "2"],
        ["0", "4..6", "image", "0", "1", "×", "2", "2", "2"],
        ["0", "6..7", "text", "4", "1"],
        ["1", "0..1", "text", "0", "1"],
        ["1", "1..2", "masked", padding, "0"],
        ["1", "2..4", "text", "1", "2"],
        ["1", "4..5", "image", "1", "1", "×", "1", "3", "1"],
        ["1", "5..7", "text", "4", "2"],
        ["2", "0..7", "masked", padding, "0"],
    ]
    for row, (delta, length, following) in enumerate(deltas):
        assert (
            f"\nrow {row}: rope_delta {delta}, so that the token after these {length} gets "
            f"position {following}\n"
        ) in out
    lines = out.splitlines()
    symbols = [words(lines[at + 1]) for at, line in enumerate(lines) if line.startswith("token")]
    assert symbols == [list("__t<II>"), list("t_t<I>t"), ["_", "…", "_"]]
    width = [words(line)[1:] for line in lines if line.startswith("    w ")]
    assert width[0] == [padding, padding, "0", "1", "2", "3", "4"]
    assert width[1] == ["0", padding, "1", "2", "3", "4", "5"]
    assert width[2] == [padding, "…", padding]
    assert "Confirmed: all 63 positions" in out


def test_a_mask_may_be_of_booleans_and_null_is_no_argument(run_prompt):
    code, out, _ = run_prompt(
        input_ids=ids("tt_"), attention_mask=[True, True, False], image_grid_thw=None
    )
    assert code == 0
    assert "rope_delta -1, so that the token after these 3 gets position 2" in out


def test_frames_and_images_that_touch_are_told_apart(run_prompt):
    code, out, _ = run_prompt(
        input_ids=ids("t") + [IMAGE] * 18,
        mm_token_type_ids=[0] + [2] * 6 + [1] * 12,
        video_grid_thw=[[1, 2, 4], [2, 2, 4]],
        image_grid_thw=[[2, 2, 4], [1, 4, 8]],
    )
    assert code == 0
    assert [words(line) for line in section(out, "  0   ", "Positions")] == [
        ["0", "0..1", "text", "0", "1"],
        ["0", "1..3", "video", "0", "frame", "0", "1", "×", "2", "1", "2"],
        ["0", "3..5", "video", "1", "frame", "0", "1", "×", "2", "3", "2"],
        ["0", "5..7", "video", "1", "frame", "1", "1", "×", "2", "5", "2"],
        ["0", "7..11", "image", "0", "2", "×", "1", "×", "2", "7", "2"],
        ["0", "11..19", "image", "1", "2", "×", "4", "9", "4"],
    ]
    symbols = section(out, "\ntoken", "\n    t ")[1]
    assert words(symbols) == [*"tVVVVVV", *"IIII"]
    assert "all 57 positions" in out


def test_an_image_with_a_hole_in_it_is_continued_behind_the_hole(run_prompt):
    code, out, _ = run_prompt(
        input_ids=ids("tIIItIIIIIt"),
        attention_mask=[1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1],
        image_grid_thw=[[1, 4, 8]],
    )
    assert code == 0
    assert [words(line) for line in section(out, "  0   ", "Positions")][1:] == [
        ["0", "1..4", "image", "0", "2", "×", "4", "1", "4"],
        ["0", "4..5", "masked", "1", "0"],
        ["0", "5..10", "image", "0,", "continued", "2", "×", "4", "1", "0"],
        ["0", "10..11", "text", "5", "1"],
    ]


def test_frames_that_touch_are_told_apart_behind_a_hole(run_prompt):
    code, out, _ = run_prompt(
        input_ids=ids("[IItIIIIII]"),
        attention_mask=[1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
        video_grid_thw=[[2, 4, 4]],
    )
    assert code == 0
    assert [words(line) for line in section(out, "  0   ", "Positions")][1:] == [
        ["0", "1..3", "video", "0", "frame", "0", "2", "×", "2", "1", "2"],
        ["0", "3..4", "masked", "1", "0"],
        ["0", "4..6", "video", "0", "frame", "0,", "continued", "2", "×", "2", "1", "0"],
        ["0", "6..10", "video", "0", "frame", "1", "2", "×", "2", "3", "2"],
        ["0", "10..11", "text", "5", "1"],
    ]


def test_what_is_long_is_shown_at_its_ends(run_prompt):
    frames = ids("<" + "I" * 100 + ">") * 30
    code, out, _ = run_prompt(input_ids=ids("[") + frames + ids("]"), video_grid_thw=[[30, 20, 20]])
    assert code == 0
    table = [words(line) for line in section(out, "row   tokens", "Positions")][1:]
    assert len(table) == 12 + 1 + 6
    assert table[11][:6] == ["0", "512..612", "video", "0", "frame", "5"]
    assert table[12] == ["…", "43", "more"]
    assert table[13][:3] == ["0", "2756..2856", "video"]
    assert table[-1][:3] == ["0", "3060..3062", "text"]
    lines = section(out, "row 0:", "Confirmed")
    first = lines.index(next(line for line in lines if line.startswith("token")))
    indices = "0 1 2 3 4 … 11 12 13 … 100 101 102 103"
    assert words(lines[first]) == ["token", *words(indices)]
    assert sum(words(line).count("…") for line in lines if line.startswith("token")) == 9 * 2 + 1


@pytest.mark.parametrize(
    ("length", "shown"),
    [(5, "0 1 2 3 4"), (6, "0 1 2 3 4 5"), (7, "0 1 2 … 5 6")],
)
def test_a_gap_leaves_out_more_than_one_token(run_prompt, length, shown):
    _, out, _ = run_prompt(input_ids=[7] * length)
    assert words(section(out, "\ntoken", "\n    t ")[0])[1:] == shown.split()


def test_a_wrong_position_is_reported_loudly(run, monkeypatch):
    def planted(*arguments, **keywords):
        position_ids, rope_deltas = answer(*arguments, **keywords)
        position_ids[2, 0, 23] += 1
        return position_ids, rope_deltas

    answer = vecrope.get_rope_index
    monkeypatch.setattr(vecrope, "get_rope_index", planted)
    code, out, err = run()
    assert code == 1
    assert "Confirmed" not in out
    assert "NOT CONFIRMED: the positions differ from those of vecrope.testing.reference" in out
    assert err == ("python -m vecrope: WRONG POSITIONS: row 0, token 23, axis w: 6, reference 5\n")


def test_a_wrong_delta_is_reported_loudly(run, monkeypatch):
    def planted(*arguments, **keywords):
        position_ids, rope_deltas = answer(*arguments, **keywords)
        return position_ids, rope_deltas + 1

    answer = vecrope.get_rope_index
    monkeypatch.setattr(vecrope, "get_rope_index", planted)
    code, _, err = run()
    assert code == 1
    assert err.endswith("WRONG POSITIONS: row 0, rope_delta: -449, reference -450\n")


def test_an_answer_to_what_the_reference_refuses_is_reported_loudly(run, monkeypatch):
    def refuse(*_, **__):
        raise reference.Refusal("for a test")

    monkeypatch.setattr(reference, "get_rope_index", refuse)
    code, out, err = run()
    assert code == 1
    assert "NOT CONFIRMED" in out
    assert err.endswith("WRONG POSITIONS: the reference refuses the prompt: for a test\n")


def test_both_are_timed_on_one_thread_which_is_undone(run, monkeypatch):
    def counted(*arguments, **keywords):
        threads.append(torch.get_num_threads())
        return answer(*arguments, **keywords)

    answer, threads = vecrope.get_rope_index, []
    monkeypatch.setattr(vecrope, "get_rope_index", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads[0] == 2
    assert len(threads) > 3
    assert set(threads[1:]) == {1}


@pytest.mark.parametrize(
    ("seconds", "shown", "ratio"),
    [
        pytest.param((50e-6, 2), " 50 µs, 2000.00 ms", "40000.0", id="slow loop"),
        pytest.param((0.01, 999e-6), " 10.00 ms, 999 µs", "0.10", id="fast loop"),
    ],
)
def test_times_are_readable(seconds, shown, ratio):
    from vecrope.cli.confirm import Answer, Timing
    from vecrope.cli.report import render

    prompt = conversation(MRopeSpec.for_model("glm4v", convention="sglang"))
    position_ids = torch.zeros((3, 1, 552), dtype=torch.int64)
    library, loop = (Timing(value, 3) for value in seconds)
    answer = Answer(position_ids, torch.zeros((1, 1)), None, library, loop)
    *_, first, second, last = render(prompt, [[]], answer)
    times = (line.partition("  median")[0].split()[-2:] for line in (first, second))
    assert " " + ", ".join(" ".join(time) for time in times) == shown
    assert words(last)[3] == ratio


# Bad arguments and files


def assert_refused(result, message):
    code, out, err = result
    assert (code, out) == (2, "")
    assert err == f"python -m vecrope: error: {message}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--model", "gpt"],
            f"argument --model: invalid choice: 'gpt' (choose from {', '.join(map(repr, NAMES))})",
            id="model",
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
            "attention_mask must hold 0 or 1, got 2 in row 0, token 1",
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
            "image_grid_thw, got 1 in the batch",
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
            "video_grid_thw row 0 (1, 2, 2) is left over: expected 1 video tokens in the batch, "
            "got 0",
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
            f"model_type must be one of {', '.join(map(repr, FAMILIES))}, got 'gpt2'",
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


# The picture


def pixels_of(path, color):
    with Image.open(path) as picture:
        values = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    wanted = torch.tensor([int(color[at : at + 2], 16) for at in (1, 3, 5)])
    return int((values.view(-1, 3) == wanted).all(1).sum())


def test_the_picture_shows_three_axes_over_shaded_segments(run, tmp_path):
    out = tmp_path / "positions.png"
    code, text, err = run("--plot", out)
    assert (code, err) == (0, "")
    assert text.endswith(f"\nThe picture is in {out}.\n")
    with Image.open(out) as picture:
        picture.verify()
        assert (picture.format, picture.size) == ("PNG", (1500, 690))
    assert out.stat().st_size < 150_000
    for line in ("#0072b2", "#d55e00", "#009e73", "#24292f"):
        assert pixels_of(out, line) > 500
    # 12 x 18, then 3 frames of 8 x 12, of 552 tokens on a panel of about 1380 x 470 pixels.
    panel = 1380 * 470
    assert 0.3 < pixels_of(out, "#fdf1d8") / panel < 216 / 552
    assert 0.25 < pixels_of(out, "#e6eef8") / panel < 2 * 96 / 552
    assert 0.12 < pixels_of(out, "#d6e3f3") / panel < 96 / 552


@pytest.fixture
def labels(run_prompt, tmp_path):
    """Draw a prompt; return the labels of the picture in the order in which they are drawn."""

    def labels(**content):
        out = tmp_path / "positions.svg"
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            code, _, err = run_prompt("--plot", out, **content)
        assert (code, err) == (0, "")
        texts = re.findall(r"<text [^>]*>([^<]*)</text>", out.read_text(encoding="utf-8"))
        return [html.unescape(text) for text in texts if not text.isdigit()]

    return labels


def test_segments_axes_and_the_next_position_are_labelled(labels):
    content = {"input_ids": ids("t<IIIIII>tt"), "image_grid_thw": [[1, 4, 6]]}
    assert sorted(labels(**content)) == [
        "The M-RoPE positions of a prompt",
        "height",
        "image 0, 2 × 3 tokens",
        "next token: 8 (rope_delta -3)",
        "position",
        "prompt.json",
        "temporal",
        "text: all three alike",
        "token",
        "width",
    ]


def test_every_row_has_its_panel(labels):
    drawn = labels(**ROWS)
    assert [label for label in drawn if label.startswith("row")] == [
        "row 0: position",
        "row 1: position",
        "row 2: position",
    ]
    assert drawn.count("masked") == 3
    assert drawn.count("width") == 2
    assert [label for label in drawn if label.startswith("next")] == [
        "next token: 5 (rope_delta -2)",
        "next token: 6 (rope_delta -1)",
        "next token: 0 (rope_delta -7)",
    ]


def test_labels_without_room_are_left_out(labels):
    frames = ids("<" + "I" * 4 + ">t") * 40
    drawn = labels(input_ids=ids("[") + frames + ids("]<I>"), video_grid_thw=[[40, 4, 4]],
                   image_grid_thw=[[1, 2, 2]])  # fmt: skip
    assert "video 0, 40 frames of 2 × 2 tokens" in drawn
    assert not [label for label in drawn if label.startswith(("frame", "image", "text"))]


def test_a_name_is_kept_where_its_size_has_no_room(labels):
    drawn = labels(input_ids=ids("t" * 20 + "IIIIII" + "t" * 20), image_grid_thw=[[1, 4, 6]])
    assert "image 0" in drawn


def test_a_prompt_of_text_has_no_axes_to_tell_apart(labels):
    drawn = labels(input_ids=[7] * 200)
    assert "text: all three alike" in drawn
    assert "width" not in drawn


def test_a_file_name_is_not_read_as_mathematics(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompt = tmp_path / "a$x^2$b.json"
    prompt.write_text(json.dumps({"input_ids": [7]}))
    out = tmp_path / "positions.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        assert run("--input", prompt.name, "--plot", out)[0] == 0
    assert ">a$x^2$b.json<" in out.read_text(encoding="utf-8")


def test_more_rows_than_a_picture_holds_get_one_line(run_prompt, tmp_path):
    out = tmp_path / "positions.png"
    result = run_prompt("--plot", out, input_ids=[[7]] * 9)
    assert_refused(result, "--plot draws at most 8 rows, got 9")
    assert not out.exists()


def test_without_matplotlib_a_picture_names_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("--plot", tmp_path / "positions.png")
    assert_refused(result, "--plot needs matplotlib: pip install 'vecrope[plot]'")


def test_without_matplotlib_all_else_works(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run()[0] == 0


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
    assert "the family, with its default ids (default: glm4v)" in out
    assert "the upstream whose answers to give (default: sglang)" in out


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
    assert "invalid choice: 'gpt'" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_fault(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main([]) == 141
