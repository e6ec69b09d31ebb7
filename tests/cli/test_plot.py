"""The picture that the command line draws."""

# ruff: noqa: RUF001 - the multiplication sign is the right sign for a grid
import html
import json
import re
import sys

import matplotlib
import pytest
import torch
from PIL import Image

from tests.cli.prompts import ROWS, assert_refused, ids

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
    # 27 x 36, then 4 frames of 16 x 24, of 2559 tokens on a panel of about 1380 x 470 pixels.
    panel = 1380 * 470
    assert 0.3 < pixels_of(out, "#fdf1d8") / panel < 972 / 2559
    assert 0.25 < pixels_of(out, "#e6eef8") / panel < 2 * 384 / 2559
    assert 0.12 < pixels_of(out, "#d6e3f3") / panel < 2 * 384 / 2559


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
