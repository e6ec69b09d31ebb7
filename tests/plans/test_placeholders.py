"""Plans and positions from runs of placeholders are those of the loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import spec_of
from packings import packings, sequences
from support import assert_same

from tests.plans.placeholder_cases import (
    IMAGE,
    NO_RUN,
    QWEN,
    VIDEO,
    arguments_of,
    each_spec,
    int_dtypes,
    integers,
    request_of,
    runs,
)
from vecrope import (
    get_rope_index,
    get_rope_index_from_placeholders,
    plan_from_placeholders,
)
from vecrope.testing import Prompt


@st.composite
def one_prompt(draw, spec):
    prompt = draw(sequences(spec, hostile=spec.mask_rule == "skip"))
    images, videos = (
        None if grids is None else grids.tolist()
        for grids in (prompt.image_grid_thw, prompt.video_grid_thw)
    )
    request = request_of(
        spec,
        [prompt],
        images,
        videos,
        prompt.second_per_grid_ts,
        draw(st.booleans()),
        draw(int_dtypes),
        draw(int_dtypes),
    )
    if draw(st.booleans()):
        request.num_tokens = request.num_tokens[0]
    if draw(st.booleans()):
        request.arguments["rows"] = None
    return request


@st.composite
def several_prompts(draw, spec):
    packing = draw(packings(spec, hostile=spec.mask_rule == "skip"))
    return request_of(
        spec,
        packing.parts,
        packing.image_grid_thw.tolist(),
        packing.video_grid_thw.tolist(),
        packing.second_per_grid_ts,
        draw(st.booleans()),
        draw(int_dtypes),
        draw(int_dtypes),
    )


def assert_answers(request, spec, **options):
    arguments = {**request.arguments, **options}
    plan = plan_from_placeholders(request.num_tokens, spec, **arguments)
    answer = get_rope_index_from_placeholders(request.num_tokens, spec, **arguments)
    for got in ((plan.position_ids(), plan.rope_deltas), answer):
        assert_same(got, request.want)
        assert_same(got, request.by_ids)
        assert got[0].is_contiguous()
    return plan


@each_spec
def test_one_prompt(spec):
    @given(one_prompt(spec), st.booleans())
    def check(request, validate):
        plan = assert_answers(request, spec, validate=validate)
        assert plan.num_rows == 1
        assert plan.seq_len is None

    check()


@each_spec
def test_several_prompts(spec):
    @given(several_prompts(spec), st.booleans())
    def check(request, validate):
        plan = assert_answers(request, spec, validate=validate)
        assert plan.num_rows == len(request.num_tokens)
        starts = integers([0, *request.num_tokens]).cumsum(0)
        assert plan.row_bounds.tolist() == starts.tolist()

    check()


@pytest.mark.parametrize(
    ("num_tokens", "arguments", "expected", "deltas"),
    [
        pytest.param(3, NO_RUN, [[0, 1, 2]] * 3, [[0]], id="text"),
        pytest.param(0, NO_RUN, [[]] * 3, [[0]], id="nothing"),
        pytest.param(
            [0, 2, 0],
            {**NO_RUN, "rows": NO_RUN["offsets"]},
            [[0, 1]] * 3,
            [[0], [0], [0]],
            id="prompts without a token",
        ),
        pytest.param(
            2,
            runs((0, 2, IMAGE), image_grid_thw=integers([[1, 2, 4]])),
            [[0, 0], [0, 0], [0, 1]],
            [[0]],
            id="an image alone",
        ),
        pytest.param(
            8,
            runs((0, 2, IMAGE), (2, 2, IMAGE), (4, 4, VIDEO))
            | {
                "image_grid_thw": integers([[1, 2, 4], [1, 4, 2]]),
                "video_grid_thw": integers([[2, 4, 2]]),
            },
            [[0, 0, 2, 2, 4, 4, 6, 6], [0, 0, 2, 3, 4, 5, 4, 5], [0, 1, 2, 2, 4, 4, 4, 4]],
            [[-1]],
            id="nothing between",
        ),
        pytest.param(
            [0, 5, 0, 4],
            runs((1, 2, IMAGE, 1), (0, 4, VIDEO, 3), image_grid_thw=integers([[1, 2, 4]]))
            | {"video_grid_thw": integers([[2, 2, 4]]), "second_per_grid_ts": [1.5]},
            [[0, 1, 1, 3, 4, 0, 0, 3, 3], [0, 1, 1, 3, 4, 0, 0, 0, 0], [0, 1, 2, 3, 4, 0, 1, 0, 1]],
            [[0], [0], [0], [0]],
            id="in some of the prompts",
        ),
    ],
)
def test_by_hand(num_tokens, arguments, expected, deltas):
    spec = spec_of("qwen2_5_vl", "vllm", tokens_per_second=2)
    position_ids, rope_deltas = get_rope_index_from_placeholders(num_tokens, spec, **arguments)
    plan = plan_from_placeholders(num_tokens, spec, **arguments)
    assert position_ids.tolist() == plan.position_ids().tolist() == expected
    assert rope_deltas.tolist() == plan.rope_deltas.tolist() == deltas


@pytest.mark.parametrize("num_tokens", [8, 80])
@pytest.mark.parametrize("media", ["none", "an image", "an image and a video"])
@each_spec
def test_nothing_depends_on_the_default_device(spec, media, num_tokens):
    merge, frames = spec.spatial_merge_size, spec.temporal_merge_size
    video = media == "an image and a video"
    if media == "none":
        arguments = dict(NO_RUN)
    elif video:
        arguments = runs((0, 4, IMAGE), (5, 2, VIDEO))
    else:
        arguments = runs((1, 4, IMAGE))
    if media != "none":
        arguments["image_grid_thw"] = integers([[1, 2 * merge, 2 * merge]])
    if video:
        arguments["video_grid_thw"] = integers([[frames, 2 * merge, merge]])
    if video and spec.video_time == "seconds":
        arguments["second_per_grid_ts"] = [1.5]
    want = get_rope_index_from_placeholders(num_tokens, spec, **arguments)
    with torch.device("meta"):
        answer = get_rope_index_from_placeholders(num_tokens, spec, **arguments)
        plan = plan_from_placeholders(num_tokens, spec, **arguments)
        planned = plan.position_ids(), plan.rope_deltas
    for got in (answer, planned):
        assert {tensor.device.type for tensor in got} == {"cpu"}
        assert_same(got, want)


def test_sides_are_counted_exactly():
    """Also those that are no float of 32 bits, where no other grid says that they are integers."""
    tokens = 2**24 + 1
    arguments = runs((1, tokens, IMAGE), image_grid_thw=integers([[1, 2, 2 * tokens]]))
    plan = plan_from_placeholders(tokens + 2, QWEN, **arguments)
    assert plan.slice(tokens, tokens + 2).tolist() == [[[1, tokens + 1]]] * 2 + [
        [[tokens, tokens + 1]]
    ]


@st.composite
def hostile_requests(draw, spec):
    """Draw runs that lie anywhere, grids that may not fit them, and seconds."""
    counts = draw(st.lists(st.integers(0, 16), min_size=1, max_size=2))
    slip = st.sampled_from([0] * 12 + [-1, 1])
    merge, found = spec.spatial_merge_size, []
    grids = {IMAGE: [], VIDEO: []}
    for row, count in enumerate(counts):
        end = 0
        while len(found) < 5 and draw(st.booleans()):
            offset = end + draw(st.integers(0, 2))
            kind = draw(st.sampled_from([IMAGE, VIDEO]))
            # A run of one group: where frames are apart the video goes on in other runs.
            h, w = draw(st.integers(1, 2)), draw(st.integers(1, 3))
            end = offset + h * w
            if end > count and draw(st.integers(0, 4)):
                break
            frames = spec.temporal_merge_size if kind == VIDEO else 1
            grid = [frames, h * merge, w * merge]
            pending = grids[kind]
            if kind == VIDEO and spec.separate_frames and pending and pending[-1][1:] == grid[1:]:
                pending[-1][0] += frames
            else:
                pending.append(grid)
            run = (offset, end - offset, kind, row)
            found.append([value + draw(slip) for value in run])
    for pending in grids.values():
        if not draw(st.integers(0, 9)):
            pending.append([1, merge, merge])
    seconds = [0.7] * len(grids[VIDEO]) if spec.video_time == "seconds" else None
    return counts, integers(found, dtype=torch.int64).reshape(-1, 4), grids, seconds


def lie_in_their_prompts(counts, runs):
    ends, last = [0] * len(counts), 0
    for offset, length, kind, row in runs.tolist():
        if not last <= row < len(counts) or kind not in (IMAGE, VIDEO):
            return False
        if offset < ends[row] or length < 1 or offset + length > counts[row]:
            return False
        ends[row], last = offset + length, row
    return True


@each_spec
def test_hostile_runs_give_what_their_tokens_give_or_are_refused(spec):
    outcomes = set()

    @given(hostile_requests(spec), int_dtypes)
    def check(request, dtype):
        counts, found, grids, seconds = request
        arguments = arguments_of(found, grids[IMAGE], grids[VIDEO], seconds, dtype, torch.int64)
        try:
            answer = get_rope_index_from_placeholders(counts, spec, **arguments)
        except ValueError:
            with pytest.raises(ValueError, match=r"\w"):
                plan_from_placeholders(counts, spec, **arguments)
            outcomes.add("refused")
            return
        outcomes.add("answered")
        assert lie_in_their_prompts(counts, found)
        starts = integers([0, *counts]).cumsum(0)
        types = torch.zeros(sum(counts), dtype=torch.int64)
        for offset, length, kind, row in found.tolist():
            types[starts[row] + offset : starts[row] + offset + length] = kind
        by_types = get_rope_index(
            torch.zeros_like(types),
            spec,
            cu_seqlens=starts,
            mm_token_type_ids=types,
            image_grid_thw=arguments["image_grid_thw"],
            video_grid_thw=arguments["video_grid_thw"],
            second_per_grid_ts=seconds,
        )
        assert_same(answer, by_types)
        plan = plan_from_placeholders(counts, spec, **arguments)
        assert_same([plan.position_ids(), plan.rope_deltas], answer)

    check()
    assert outcomes == {"answered", "refused"}


@pytest.mark.parametrize("validate", [True, False])
def test_an_image_at_the_end_moves_the_delta_by_its_own_size_alone(validate):
    """Also where a block may reach further than it moves the position, and behind it is nothing."""
    spec = spec_of("glm4v", "transformers")
    arguments = runs((1, 2, IMAGE), image_grid_thw=integers([[1, 2, 4]]), validate=validate)
    answer = get_rope_index_from_placeholders(3, spec, **arguments)
    prompt = Prompt.from_symbols(spec, ["tII"], image_grid_thw=[[1, 2, 4]])
    assert_same((answer[0][:, None], answer[1]), prompt.expected())
