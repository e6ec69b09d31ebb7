"""The command line with a prompt from a file."""

# ruff: noqa: RUF001 - the multiplication sign is the right sign for a grid

import pytest

from tests.cli.prompts import IMAGE, ROWS, ids, section, words


def test_a_row_of_a_file_is_shown_token_by_token(run_prompt):
    code, out, err = run_prompt(input_ids=ids("t<IIIIII>t"), image_grid_thw=[[1, 4, 6]])
    assert (code, err) == (0, "")
    assert out.startswith("prompt.json\nmodel glm4v, convention sglang, 1 row of 10 tokens\n")
    assert section(out, "row 0:", "Confirmed") == [
        "row 0: rope_delta -3: the token after these 10 gets position 7",
        "",
        "       text   image 0       text",
        "token  0 1    2 3 4 5 6 7   8 9",
        "       t <    I I I I I I   > t",
        "    t  0 1    2 2 2 2 2 2   5 6",
        "    h  0 1    2 2 2 3 3 3   5 6",
        "    w  0 1    2 3 4 2 3 4   5 6",
    ]


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
            f"\nrow {row}: rope_delta {delta}: the token after these {length} gets "
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
    assert "rope_delta -1: the token after these 3 gets position 2" in out


def test_frames_and_images_that_touch_are_told_apart(run_prompt, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
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
