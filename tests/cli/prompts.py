"""What the tests of the command line share."""

# ruff: noqa: RUF001 - the multiplication sign is the right sign for a grid

from vecrope.cli.demo import NAMES

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


def section(out, first, last):
    start = out.index(first)
    return out[start : out.index(last, start)].strip("\n").splitlines()


def words(line):
    return line.split()


DEMO_SEGMENTS = """\
row   tokens       what              grid h × w   base   advance
  0      0..5      text                              0         5
  0      5..977    image 0              27 × 36      5        36
  0    977..1003   text                             41        26
  0   1003..1387   video 0 frame 0      16 × 24     67        24
  0   1387..1390   text                             91         3
  0   1390..1774   video 0 frame 1      16 × 24     94        24
  0   1774..1777   text                            118         3
  0   1777..2161   video 0 frame 2      16 × 24    121        24
  0   2161..2164   text                            145         3
  0   2164..2548   video 0 frame 3      16 × 24    148        24
  0   2548..2559   text                            172        11
"""

GLM = [name for name in NAMES if name.startswith("glm")]

ROWS = {
    "input_ids": [ids("__t<II>"), ids("ttt<I>t"), ids("_______")],
    "attention_mask": [[0, 0, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1, 1], [0] * 7],
    "image_grid_thw": [[1, 2, 4], [1, 2, 2]],
}

# Bad arguments and files


def assert_refused(result, message):
    code, out, err = result
    assert (code, out) == (2, "")
    assert err == f"python -m vecrope: error: {message}\n"
