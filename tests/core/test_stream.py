"""A batch as one stream of tokens, padded and packed: rows and sums, counted one by one."""

from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
import torch

from vecrope.core.items import make_items
from vecrope.core.stream import make_stream, value_at_last
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

BOUNDS = [0, 0, 3, 4, 4, 8]
SPEC = MRopeSpec.for_model("qwen2_vl", convention="transformers")


@pytest.fixture(params=["padded", "packed", "one sequence", "no token"])
def bounds(request):
    """Return where rows start, then N."""
    return {
        "padded": [0, 4, 8],
        "packed": BOUNDS,
        "one sequence": [0, 5],
        "no token": [0, 0, 0],
    }[request.param]


@pytest.fixture
def stream(bounds):
    ids = torch.arange(bounds[-1])
    widths = {stop - start for start, stop in pairwise(bounds)}
    if len(widths) == 1 and len(bounds) > 2:
        return make_stream(Inputs(ids.view(len(bounds) - 1, -1)), SPEC)
    return make_stream(Inputs(ids, cu_seqlens=torch.tensor(bounds)), SPEC)


def rows_of(bounds):
    return [row for row, (start, stop) in enumerate(pairwise(bounds)) for _ in range(start, stop)]


def test_every_token_has_its_row(stream, bounds):
    assert stream.token_rows().tolist() == rows_of(bounds)
    assert stream.token_rows().dtype == torch.int64
    assert (stream.num_tokens, stream.num_rows) == (bounds[-1], len(bounds) - 1)


def test_sums_run_in_each_row(stream, bounds):
    values = torch.arange(bounds[-1]) % 3 + 1
    parts = [values[start:stop].tolist() for start, stop in pairwise(bounds)]
    running, totals = stream.running_sums(values, stream.token_rows())
    assert running.tolist() == [value for part in parts for value in accumulate(part)]
    assert totals.tolist() == stream.row_sums(values).tolist() == [sum(part) for part in parts]
    assert running.dtype == totals.dtype == stream.row_sums(values).dtype == stream.index_dtype


def test_the_value_at_the_last_flag():
    flags, values = torch.tensor([0, 1, 0, 1, 1]).bool(), torch.tensor([5, 6, 7, 8, 9])
    assert value_at_last(flags, values, -1).tolist() == [-1, 6, 6, 8, 9]
    before = value_at_last(flags, values, -1, before=True)
    assert before[flags].tolist() == [-1, 6, 8]


def test_what_is_no_image_or_video_is_not_scaled_in_time():
    grids = torch.tensor([[1, 2, 2]] * 3)

    def scale(spec, seconds=None):
        return make_items(grids[:2], grids[2:], spec, torch.int64, seconds).time_scale

    assert scale(SPEC) is None
    still = replace(SPEC, image_time="none")
    assert scale(still).tolist() == [[0, 0, 1, 1, 1], [1] * 5]
    timed = MRopeSpec.for_model("qwen2_5_vl", convention="sglang")
    factors = scale(timed, [1.5])
    assert factors.tolist() == [[0, 0, 1.5, 1, 1], [1, 1, timed.tokens_per_second, 1, 1]]
