"""The eager form where its numbers change their width or their precision."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from support import spec_of

from vecrope import get_rope_index
from vecrope.core.items import temporal_offset, video_time_scale
from vecrope.forms.eager.items import TimeScale, read_items, steps_of_frames
from vecrope.inputs import Inputs

SPEC = spec_of("qwen2_5_vl", "transformers")


def both_forms(image_grid_thw, video_grid_thw, seconds):
    """Return the answers of the eager and the static form for images, then videos, in text."""
    ids = [7]
    grids = [*image_grid_thw, *video_grid_thw]
    for number, (frames, height, width) in enumerate(grids):
        token = SPEC.image_token_id if number < len(image_grid_thw) else SPEC.video_token_id
        ids += [9, *[token] * (frames * height * width // 4), 7, 8]
    return [
        get_rope_index(
            torch.tensor([ids]),
            SPEC,
            image_grid_thw=torch.tensor(image_grid_thw),
            video_grid_thw=torch.tensor(video_grid_thw),
            second_per_grid_ts=seconds,
            form=form,
        )
        for form in ("eager", "static")
    ]


@pytest.mark.parametrize("side", [126, 127, 128, 129, 32767, 32768])
def test_steps_are_as_wide_as_they_must_be(side):
    images, videos = [[1, 2, 2 * side], [1, 2 * side, 2], [1, 4, 4]], [[3, 4, 6], [1, 2, 2]]
    # The frames of a video are `side` positions apart, and its end is behind its last frame.
    eager, static = both_forms(images, videos, [side / SPEC.tokens_per_second, 0.0])
    assert all(map(torch.equal, eager, static))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_each_product_is_rounded_as_by_the_operators(dtype):
    generator = torch.Generator().manual_seed(3)
    scale = torch.rand((2, 8), generator=generator, dtype=torch.float64).mul_(9).to(dtype)
    scale[1, :4].fill_(1)
    depth = [1, 2, 3, 300, 5, 2000, 1, 4]
    for factors in (scale, scale[:, :4]):
        frames = depth[: factors.shape[1]]
        extents, between = steps_of_frames(frames, TimeScale(dtype, *factors.tolist()))
        for number, extent, steps, each in zip(frames, extents, between, factors.t(), strict=True):
            offsets = temporal_offset(torch.arange(number), each).tolist()
            assert [*accumulate(steps, initial=0)] == offsets
            assert extent == offsets[-1] + 1


@pytest.mark.parametrize("time_order", ["rate", "seconds"])
@pytest.mark.parametrize("rate", [2, 25, 0.1, 1234.567])
@pytest.mark.parametrize(
    "dtype", [None, list, torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64]
)
def test_factors_are_those_of_the_operators(dtype, rate, time_order):
    drawn = torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seconds = None if dtype is None else drawn.mul_(9)
    if dtype is list:
        seconds = seconds.tolist()
    elif dtype is not None:
        seconds = seconds.to(dtype)
    grids = torch.tensor([[2, 4, 4]]).repeat(64, 1)
    rules = {"tokens_per_second": rate, "time_order": time_order, "default_seconds": 0.3}
    for time_dtype in ("given", "float32", "float64", "int64")[: 3 + (rate == int(rate))]:
        spec = replace(SPEC, time_dtype=time_dtype, **rules)
        inputs = Inputs(grids, video_grid_thw=grids, second_per_grid_ts=seconds)
        found = read_items(inputs, spec).time_scale
        expected = video_time_scale(64, spec, seconds, torch.device("cpu"))
        assert found.dtype == expected.dtype
        assert [[*found.steps], [*found.scales]] == expected.tolist()


def test_seconds_that_their_precision_cannot_count_are_refused():
    with pytest.raises(ValueError, match=r"below 65504, as torch.float16 asks, got 9000.0 for vid"):
        both_forms([[1, 2, 2]], [[4, 2, 2]], torch.tensor([9000.0], dtype=torch.float16))
