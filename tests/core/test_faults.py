"""What is named where a prompt and its grids do not fit, and what is no fault."""

import pytest
from support import assert_same, rope_index, spec_of

from vecrope.core.faults import check_grids
from vecrope.testing import Prompt

QWEN3 = spec_of("qwen3_vl", "sglang")
GLM = spec_of("glm4v", "transformers")
NO_TOUCHING = spec_of("glm4v", "vllm")
START = QWEN3.vision_start_token_id


@pytest.mark.parametrize("form", ["eager", "static"])
@pytest.mark.parametrize(
    ("spec", "rows", "images", "videos", "message"),
    [
        pytest.param(
            QWEN3, ["<I>t<V>tVtt"], 1, [[1, 2, 2]] * 2,
            f"row 0, video 1: its grid .1, 2, 2. needs a vision_start_token_id {START} right",
            id="a marker of the second video",
        ),
        pytest.param(
            QWEN3, ["t<VVt"], 0, [[2, 2, 2]],
            f"row 0, video 0: its grid .2, 2, 2. needs a .* {START} before each of its frames",
            id="a marker of each frame",
        ),
        pytest.param(
            GLM, ["t<I>t"], 1, [[1, 2, 2]],
            "video_grid_thw row 0 .1, 2, 2. is left over: expected 1 video tokens in all",
            id="a video left over beside an image",
        ),
        pytest.param(
            GLM, ["t<I>t[I]"], 2, [[1, 2, 2]],
            "image_grid_thw row 1 .1, 2, 2. is left over: expected 2 image tokens in all",
            id="an image left over beside a video",
        ),
        pytest.param(
            GLM, ["ttt", "tII"], 1, [],
            "row 1 holds image tokens beyond the last grid: expected 1 for the 1 rows",
            id="tokens beyond the last grid",
        ),
        pytest.param(
            GLM, ["tII", "tIt"], 1, [],
            "row 0 holds image tokens beyond the last grid: expected 1 for the 1 rows",
            id="tokens beyond the last grid, in two rows",
        ),
        pytest.param(
            QWEN3, ["t<VtV"], 0, [[2, 2, 2]],
            f"row 0, video 0: its grid .2, 2, 2. needs a .* {START} before each of its frames",
            id="a marker of a frame behind text",
        ),
        pytest.param(
            NO_TOUCHING, ["tt[II]t"], 0, [[2, 2, 2]],
            "row 0, video 0: .* needs something between its frames, got nothing at frame 0",
            id="frames that touch",
        ),
    ],
)  # fmt: skip
def test_the_fault_is_named(spec, rows, images, videos, message, form):
    prompt = Prompt.from_symbols(
        spec,
        [row.ljust(len(rows[-1]), "t") for row in rows],
        image_grid_thw=[[1, 2, 2]] * images,
        video_grid_thw=videos,
    )
    with pytest.raises(ValueError, match=message):
        rope_index(prompt, form=form)


@pytest.mark.parametrize("form", ["eager", "static"])
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(["[I]tt<I>"], id="a frame at the start, before an image"),
        pytest.param(["t<I>[I]", "[I]tttt"], id="frames at the end of a row and the start of one"),
    ],
)
def test_frames_that_do_not_touch_are_no_fault(rows, form):
    number = "".join(rows).count("[")
    prompt = Prompt.from_symbols(
        NO_TOUCHING, rows, image_grid_thw=[[1, 2, 2]], video_grid_thw=[[number, 2, 2]]
    )
    assert_same(rope_index(prompt, form=form), prompt.expected())


def test_sides_may_be_rounded_but_not_to_nothing():
    def check(*grid, **options):
        check_grids([[0, 0, 0], grid], [], GLM, **options)

    check(1, 2, 5, round_grid_sides=True)
    with pytest.raises(ValueError, match="row 1 must have a height and width of at least spatial"):
        check(1, 2, 1, round_grid_sides=True)
    with pytest.raises(ValueError, match="row 1 must have a height and width divisible by spatial"):
        check(1, 2, 5)
