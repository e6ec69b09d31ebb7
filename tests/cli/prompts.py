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
