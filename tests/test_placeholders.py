import re
from dataclasses import dataclass
from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import spec_of
from packings import packings, sequences
from support import assert_no_answer, assert_same, grid_tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

from vecrope import (
    get_rope_index,
    get_rope_index_from_placeholders,
    plan_from_placeholders,
)
from vecrope.testing import Prompt

SPECS = {
    "glm4v-sglang": spec_of("glm4v", "sglang"),
    "glm4v-transformers": spec_of("glm4v", "transformers"),
    "qwen2_5_vl-transformers": spec_of("qwen2_5_vl", "transformers"),
    "qwen2_5_vl-vllm": spec_of("qwen2_5_vl", "vllm"),
    "qwen3_vl-sglang": spec_of("qwen3_vl", "sglang"),
    "qwen3_vl-vllm": spec_of("qwen3_vl", "vllm"),
    "ernie4_5_vl_moe-vllm": spec_of("ernie4_5_vl_moe", "vllm"),
    "ernie4_5_vl_moe-transformers": spec_of("ernie4_5_vl_moe", "transformers"),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
QWEN = spec_of("qwen2_vl", "vllm")
IMAGE, VIDEO = 1, 2
integers = torch.tensor
each_function = pytest.mark.parametrize(
    "function", [plan_from_placeholders, get_rope_index_from_placeholders]
)


@dataclass
class Request:
    """Prompts by their runs of placeholders, and what they have to give."""

    num_tokens: int | list[int]
    arguments: dict
    want: tuple[torch.Tensor, torch.Tensor]
    by_ids: tuple[torch.Tensor, torch.Tensor]


def groups_of(spec, images, videos):
    """Yield, for each kind, the tokens of each image, each block and each separate frame."""
    area = spec.spatial_merge_size**2
    frames = [(t // spec.temporal_merge_size, h * w // area) for t, h, w in videos]
    blocks = (t * size for t, size in frames)
    apart = (size for t, size in frames for _ in range(t))
    return (
        iter(filter(None, (t * h * w // area for t, h, w in images))),
        iter(filter(None, apart if spec.separate_frames else blocks)),
    )


def runs_of(prompts, spec, images, videos, *, apart):
    """Return (R, 4): offset, length, kind and prompt of each run; `apart`, of each group."""
    groups = groups_of(spec, images, videos)
    runs = []
    for row, prompt in enumerate(prompts):
        offset = 0
        for kind, tokens in groupby(prompt.mm_token_type_ids[0].tolist()):
            end = offset + len(list(tokens))
            while kind and offset < end:
                length = next(groups[kind - 1]) if apart else end - offset
                runs.append((offset, length, kind, row))
                offset += length
            assert offset == end or not kind
            offset = end
    return integers(runs, dtype=torch.int64).reshape(-1, 4)


def arguments_of(runs, images, videos, seconds, integer_dtype, dtype):
    offsets, lengths, modalities, rows = runs.to(integer_dtype).unbind(1)
    return {
        "offsets": offsets,
        "lengths": lengths,
        "modalities": modalities,
        "rows": rows,
        "image_grid_thw": None if images is None else grid_tensor(images),
        "video_grid_thw": None if videos is None else grid_tensor(videos),
        "second_per_grid_ts": seconds,
        "dtype": dtype,
    }


int_dtypes = st.sampled_from([torch.int64, torch.int32])


def request_of(spec, prompts, images, videos, seconds, apart, integer_dtype, dtype):
    runs = runs_of(prompts, spec, images or [], videos or [], apart=apart)
    answers = [prompt.expected() for prompt in prompts]
    want = (
        torch.cat([positions.squeeze(1) for positions, _ in answers], 1).to(dtype),
        torch.cat([deltas for _, deltas in answers]),
    )
    arguments = arguments_of(runs, images, videos, seconds, integer_dtype, dtype)
    counts = [prompt.input_ids.shape[1] for prompt in prompts]
    positions, deltas = get_rope_index(
        torch.cat([prompt.input_ids[0] for prompt in prompts]),
        spec,
        cu_seqlens=integers([0, *counts]).cumsum(0),
        image_grid_thw=arguments["image_grid_thw"],
        video_grid_thw=arguments["video_grid_thw"],
        second_per_grid_ts=seconds,
    )
    return Request(counts, arguments, want, (positions.to(dtype), deltas))


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


# Equal to the loop


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


NO_RUN = dict.fromkeys(("offsets", "lengths", "modalities"), torch.zeros(0, dtype=torch.int64))


def runs(*rows, dtype=torch.int64, **arguments):
    """Take runs of an offset, a length, a modality and, if there are several prompts, a row."""
    names = ("offsets", "lengths", "modalities", "rows")[: len(rows[0])]
    columns = integers(rows, dtype=dtype).unbind(1)
    return {**dict(zip(names, columns, strict=True)), **arguments}


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


# Refused


PICTURE = integers([[1, 4, 4]])
GOOD = runs((1, 4, IMAGE), image_grid_thw=PICTURE)
TWO = runs((1, 4, IMAGE, 0), (2, 4, IMAGE, 1), image_grid_thw=PICTURE.repeat(2, 1))
REFUSED = {
    "no spec": (8, GOOD | {"spec": "qwen2_vl"}, TypeError, "spec must be an MRopeSpec, got str"),
    "a family of its own rule": (
        8,
        GOOD | {"spec": spec_of("glm_image", "sglang")},
        ValueError,
        "glm_image has no plan from placeholders: it is numbered by a rule of its own",
    ),
    "a dtype of positions": (
        8,
        GOOD | {"dtype": torch.float32},
        TypeError,
        "dtype must be torch.int64 or torch.int32, got torch.float32",
    ),
    "a bool for a number": (True, GOOD, TypeError, "num_tokens must hold ints, got True"),
    "a float among numbers": (
        [8, 8.0],
        TWO,
        TypeError,
        "num_tokens must hold ints, got 8.0",
    ),
    "a tensor of numbers": (
        integers([8, 8]),
        TWO,
        TypeError,
        "num_tokens must hold ints, got tensor(8)",
    ),
    "a negative number": ([8, -1], TWO, ValueError, "num_tokens must not be negative, got -1"),
    "no prompt": (
        [],
        TWO,
        ValueError,
        "num_tokens must hold a number for each prompt, got none",
    ),
    "several prompts without rows": (
        [8, 8],
        GOOD,
        ValueError,
        "rows must be given for 2 prompts, got None",
    ),
    **{
        f"{name} in a list": (
            [8, 8],
            TWO | {name: TWO[name].tolist()},
            TypeError,
            f"{name} must be a tensor, got list",
        )
        for name in ("offsets", "lengths", "modalities", "rows")
    },
    **{
        f"{name} of 16 bits": (
            [8, 8],
            TWO | {name: TWO[name].short()},
            TypeError,
            f"{name} must be int64 or int32, got torch.int16",
        )
        for name in ("offsets", "lengths", "modalities", "rows")
    },
    **{
        f"one of {name} too few": (
            [8, 8],
            TWO | {name: TWO[name][:1]},
            ValueError,
            f"{name} must have shape (R,) as offsets (2,), got (1,)",
        )
        for name in ("lengths", "modalities", "rows")
    },
    "offsets of two axes": (
        8,
        GOOD | {"offsets": GOOD["offsets"][None]},
        ValueError,
        "offsets must have shape (R,) as offsets (1, 1), got (1, 1)",
    ),
    "a grid of floats": (
        8,
        GOOD | {"image_grid_thw": PICTURE.float()},
        TypeError,
        "image_grid_thw must be of a signed integer dtype, uint8 or bool, got torch.float32",
    ),
    "a grid of two sides": (
        8,
        GOOD | {"image_grid_thw": PICTURE[:, 1:]},
        ValueError,
        "image_grid_thw must have shape (num_images, 3), got (1, 2)",
    ),
    "seconds of no video": (
        8,
        GOOD | {"second_per_grid_ts": [1.0]},
        ValueError,
        "second_per_grid_ts must have shape (0,), one for each row of video_grid_thw, got (1,)",
    ),
    "seconds that are infinite": (
        8,
        runs((1, 4, VIDEO), video_grid_thw=PICTURE, second_per_grid_ts=[float("inf")]),
        ValueError,
        "second_per_grid_ts must be finite and not negative, got inf for video 0",
    ),
    "a grid that cannot be merged": (
        8,
        GOOD | {"image_grid_thw": integers([[1, 3, 4]])},
        ValueError,
        "image_grid_thw row 0 must have a height and width divisible by spatial_merge_size 2",
    ),
    "a row too high": (
        [8, 8],
        TWO | {"rows": integers([0, 2])},
        ValueError,
        "rows must ascend from 0 to 1, got 2 at run 1",
    ),
    "a negative row": (
        [8, 8],
        TWO | {"rows": integers([-1, 1])},
        ValueError,
        "rows must ascend from 0 to 1, got -1 at run 0",
    ),
    "rows that go back": (
        [8, 8],
        TWO | {"rows": integers([1, 0])},
        ValueError,
        "rows must ascend from 0 to 1, got 0 at run 1",
    ),
    "another row than the only one": (
        8,
        GOOD | {"rows": integers([1])},
        ValueError,
        "rows must ascend from 0 to 0, got 1 at run 0",
    ),
    "a modality of sound": (
        [8, 8],
        TWO | {"modalities": integers([1, 3])},
        ValueError,
        "modalities must hold 1 or 2, got 3 at run 1",
    ),
    "a modality of text": (
        8,
        GOOD | {"modalities": integers([0])},
        ValueError,
        "modalities must hold 1 or 2, got 0 at run 0",
    ),
    "a modality that is one in 8 bits": (
        8,
        GOOD | {"modalities": integers([257])},
        ValueError,
        "modalities must hold 1 or 2, got 257 at run 0",
    ),
    "a block that bytes would measure wrongly": (
        32,
        runs((1, 4, VIDEO), video_grid_thw=integers([[1, 52, 20]], dtype=torch.uint8)),
        ValueError,
        "row 0, video 0: its grid (1, 52, 20) needs 260 tokens, got 4",
    ),
    "an unknown modality among others": (
        12,
        runs((1, 4, IMAGE), (6, 4, 3), image_grid_thw=PICTURE),
        ValueError,
        "modalities must hold 1 or 2, got 3 at run 1",
    ),
    "a second row of one prompt": (
        12,
        runs((1, 4, IMAGE, 0), (6, 4, IMAGE, 1), image_grid_thw=PICTURE.repeat(2, 1)),
        ValueError,
        "rows must ascend from 0 to 0, got 1 at run 1",
    ),
    "frames that touch where they may not": (
        12,
        runs((1, 4, VIDEO), (5, 4, VIDEO), video_grid_thw=integers([[2, 4, 4]]))
        | {"spec": spec_of("glm4v", "vllm")},
        ValueError,
        "row 0, video 0: its grid (2, 4, 4) needs something between its frames",
    ),
    "a run before its prompt": (
        8,
        GOOD | {"offsets": integers([-1])},
        ValueError,
        "row 0, run 0 of placeholders must lie between tokens 0 and 8 and hold one at least, "
        "got offset -1 and length 4",
    ),
    "a run beyond its prompt": (
        [8, 5],
        TWO,
        ValueError,
        "row 1, run 1 of placeholders must lie between tokens 0 and 5 and hold one at least, "
        "got offset 2 and length 4",
    ),
    "a run over the one before": (
        12,
        runs((1, 4, IMAGE), (4, 4, IMAGE), image_grid_thw=PICTURE.repeat(2, 1)),
        ValueError,
        "row 0, run 1 of placeholders must lie between tokens 5 and 12 and hold one at least, "
        "got offset 4 and length 4",
    ),
    "a run over the one before in the second prompt": (
        [12, 12],
        runs((1, 4, IMAGE, 0), (1, 4, IMAGE, 1), (4, 4, IMAGE, 1))
        | {"image_grid_thw": PICTURE.repeat(3, 1)},
        ValueError,
        "row 1, run 2 of placeholders must lie between tokens 5 and 12 and hold one at least, "
        "got offset 4 and length 4",
    ),
    "rows that descend behind the first": (
        [8, 8, 8],
        runs((1, 4, IMAGE, 0), (1, 4, IMAGE, 2), (1, 4, IMAGE, 1))
        | {"image_grid_thw": PICTURE.repeat(3, 1)},
        ValueError,
        "rows must ascend from 0 to 2, got 1 at run 2",
    ),
    "a run of nothing": (
        [8, 8],
        TWO | {"lengths": integers([4, 0])},
        ValueError,
        "row 1, run 1 of placeholders must lie between tokens 0 and 8 and hold one at least, "
        "got offset 2 and length 0",
    ),
    "a run of nothing behind another of one prompt": (
        8,
        runs((1, 4, IMAGE), (6, 0, IMAGE), image_grid_thw=PICTURE),
        ValueError,
        "row 0, run 1 of placeholders must lie between tokens 5 and 8 and hold one at least, "
        "got offset 6 and length 0",
    ),
    "a run whose end wraps": (
        [8, 8],
        runs((1, 4, IMAGE, 0), (2**31 - 2, 4, IMAGE, 1), dtype=torch.int32)
        | {"image_grid_thw": PICTURE.repeat(2, 1)},
        ValueError,
        "row 1, run 1 of placeholders must lie between tokens 0 and 8 and hold one at least, "
        "got offset 2147483646 and length 4",
    ),
    "an image cut short": (
        [8, 8],
        TWO | {"lengths": integers([3, 4])},
        ValueError,
        "row 0, image 0: its grid (1, 4, 4) needs 4 tokens, got 3 in one run; was the prompt "
        "truncated inside the image?",
    ),
    "an image without a run": (
        8,
        GOOD | {"image_grid_thw": PICTURE.repeat(2, 1)},
        ValueError,
        "image_grid_thw row 1 (1, 4, 4) is left over: expected 8 image tokens in the batch, got 4",
    ),
    "a run without an image": (
        8,
        GOOD | {"image_grid_thw": None},
        ValueError,
        "row 0 holds image tokens beyond the last grid: expected 0 for the 0 rows of "
        "image_grid_thw, got 4 in the batch",
    ),
}


@each_function
@pytest.mark.parametrize(
    ("num_tokens", "arguments", "error", "message"), REFUSED.values(), ids=REFUSED.keys()
)
def test_refused(num_tokens, arguments, error, message, function):
    arguments = {"spec": QWEN, **arguments}
    with pytest.raises(error, match=re.escape(message)):
        function(num_tokens, **arguments)


@each_function
@pytest.mark.parametrize(("num_tokens", "arguments"), [(8, GOOD), ([8, 8], TWO)])
def test_what_is_refused_differs_from_what_is_not(num_tokens, arguments, function):
    function(num_tokens, QWEN, **arguments)


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


# Compiled, and without reading values


def answer_of(num_tokens, spec, arguments):
    plan = plan_from_placeholders(num_tokens, spec, **arguments, validate=False)
    positions, deltas = get_rope_index_from_placeholders(
        num_tokens, spec, **arguments, validate=False
    )
    return positions, deltas, plan.position_ids(), plan.slice(2, 12)


@pytest.mark.parametrize("validate", [True, False])
def test_an_image_at_the_end_moves_the_delta_by_its_own_size_alone(validate):
    """Also where a block may reach further than it moves the position, and behind it is nothing."""
    spec = spec_of("glm4v", "transformers")
    arguments = runs((1, 2, IMAGE), image_grid_thw=integers([[1, 2, 4]]), validate=validate)
    answer = get_rope_index_from_placeholders(3, spec, **arguments)
    prompt = Prompt.from_symbols(spec, ["tII"], image_grid_thw=[[1, 2, 4]])
    assert_same((answer[0][:, None], answer[1]), prompt.expected())


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["glm4v-sglang", "qwen2_5_vl-vllm", "qwen3_vl-sglang"])
def test_compiled_equals_eager_and_compiles_once(name, counter):
    spec = SPECS[name]
    function = torch.compile(answer_of, fullgraph=True, backend=counter)
    merge, frames = spec.spatial_merge_size, spec.temporal_merge_size
    for grid, offsets in (([merge, 2 * merge], [1, 0]), ([2 * merge, merge], [3, 2])):
        found = integers([[offsets[0], 2, IMAGE, 0], [offsets[1], 2, VIDEO, 1]])
        arguments = arguments_of(
            found, [[1, *grid]], [[frames, *grid]], None, torch.int64, torch.int32
        )
        if spec.video_time == "seconds":
            arguments["second_per_grid_ts"] = integers([0.7])
        want = answer_of([6, 5], spec, arguments)
        assert_same(function([6, 5], spec, arguments), want)
        checked = get_rope_index_from_placeholders([6, 5], spec, **arguments)
        assert_same(want[:2], checked)
    assert counter.frame_count == 1


def test_where_no_value_may_be_read_a_run_is_of_one_group():
    function = torch.compile(answer_of, fullgraph=True, backend="eager")
    grids = integers([[1, 2, 4], [1, 4, 2]])
    apart = runs((1, 2, IMAGE), (3, 2, IMAGE), image_grid_thw=grids)
    whole = runs((1, 4, IMAGE), image_grid_thw=grids)
    want = answer_of(6, QWEN, whole)
    assert_same(function(6, QWEN, apart), want)
    beyond = runs((1, 2, IMAGE), (3, 2, IMAGE), image_grid_thw=grids[:1])
    for arguments in (whole, beyond):
        positions, deltas, planned, _ = function(6, QWEN, arguments)
        for answer in (positions, planned):
            assert_no_answer((answer, deltas))


def fake_arguments(device):
    number = torch.empty(3, dtype=torch.int64, device=device)
    grids = torch.empty((2, 3), dtype=torch.int64, device=device)
    return {
        **dict.fromkeys(("offsets", "lengths", "modalities", "rows"), number),
        "image_grid_thw": grids,
        "video_grid_thw": grids,
    }


@each_spec
def test_unchecked_no_value_is_read(spec):
    # The numbers of tokens become a tensor of their own.
    with FakeTensorMode(allow_non_fake_inputs=True):
        positions, deltas, planned, chunk = answer_of([6, 5], spec, fake_arguments("meta"))
    assert (positions.shape, planned.shape, deltas.shape) == ((3, 11), (3, 11), (2, 1))
    assert chunk.shape == (3, 2, 10)
    assert {tensor.device.type for tensor in (positions, deltas, planned, chunk)} == {"meta"}


@each_spec
def test_unchecked_no_value_is_read_of_one_prompt(spec):
    arguments = fake_arguments("meta") | {"rows": None}
    with FakeTensorMode(allow_non_fake_inputs=True):
        positions, deltas, planned, _ = answer_of(11, spec, arguments)
    assert (positions.shape, planned.shape, deltas.shape) == ((3, 11), (3, 11), (1, 1))
    assert {tensor.device.type for tensor in (positions, deltas, planned)} == {"meta"}


@each_function
def test_checks_read_values(function):
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises((DataDependentOutputException, DynamicOutputShapeException)),
    ):
        function([6, 5], QWEN, **fake_arguments("meta"))


def test_grids_on_the_host_are_moved_to_the_runs():
    arguments = fake_arguments("meta")
    arguments["image_grid_thw"] = torch.empty((2, 3), dtype=torch.int64)
    plan = plan_from_placeholders([6, 5], QWEN, **arguments, validate=False)
    assert plan.device.type == "meta"
