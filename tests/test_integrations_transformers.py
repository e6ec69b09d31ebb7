"""A patched `get_rope_index` answers as the method of transformers does."""

from dataclasses import replace
from itertools import groupby

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support import assert_no_answer, assert_same, grid_list, kept
from tiny_models import LAYOUTS, spec_of_model, tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from vecrope import get_rope_index
from vecrope.inputs import Inputs
from vecrope.integrations.transformers import patched
from vecrope.rope_index import rope_index_of
from vecrope.testing import Prompt, conversations, token_soup

each_family = pytest.mark.parametrize("model_type", LAYOUTS)
# One of each rule.
RULES = ("glm4v", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "ernie4_5_vl_moe")
each_rule = pytest.mark.parametrize("model_type", RULES)


def module_of(model_type):
    """Return the module of a tiny model that has the method."""
    return tiny_model(model_type).model


def prompt_of(model_type, *rows, **arguments):
    return Prompt.from_symbols(spec_of_model(model_type), rows, **arguments)


def patched_answer(prompt, module=None, **options):
    """Return (ours, theirs): each an answer, or the exception that was raised."""
    module = module or module_of(prompt.spec.model_type)
    theirs = outcome(module, prompt)
    with patched(module, **options):
        return outcome(module, prompt), theirs


def outcome(module, prompt):
    try:
        return module.get_rope_index(**prompt.arguments())
    except Exception as error:
        return error


def answered(result):
    return isinstance(result, tuple)


# What it answers: what the method of transformers does


def runs_and_blocks(prompt, kind):
    """Return the lengths of one kind's runs, and the tokens of each of its images or frames."""
    runs = []
    for types, keep in zip(prompt.mm_token_type_ids, kept(prompt), strict=True):
        runs += [len(list(run)) for value, run in groupby(types[keep].tolist()) if value == kind]
    merge, merge_t = prompt.spec.spatial_merge_size, prompt.spec.temporal_merge_size
    blocks = []
    for t, h, w in grid_list((None, prompt.image_grid_thw, prompt.video_grid_thw)[kind]):
        area = (h // merge) * (w // merge)
        if kind == 2 and prompt.spec.separate_frames:
            blocks += [area] * t
        else:
            blocks.append((t // merge_t if kind == 2 else t) * area)
    return runs, blocks


def each_run_is_the_next_block(prompt):
    """Say what transformers relies on: where it does not hold, its answer is an accident."""
    for kind in (1, 2):
        runs, blocks = runs_and_blocks(prompt, kind)
        if runs != blocks[: len(runs)]:
            return False
    return True


def grids_are_sound(prompt):
    """Say whether every grid, used or not, is one."""
    grids = grid_list(prompt.image_grid_thw) + grid_list(prompt.video_grid_thw)
    merge, merge_t = prompt.spec.spatial_merge_size, prompt.spec.temporal_merge_size
    deep = all(grid[0] >= merge_t for grid in grid_list(prompt.video_grid_thw))
    return deep and all(t > 0 and h >= merge and w >= merge for t, h, w in grids)


def seconds_are_sound(prompt):
    seconds = prompt.second_per_grid_ts
    if prompt.spec.video_time != "seconds" or seconds is None:
        return True
    values = torch.as_tensor(seconds, dtype=torch.float64)
    videos = len(grid_list(prompt.video_grid_thw))
    return len(values) >= videos and bool((values.isfinite() & (values >= 0)).all())


def has_a_row_without_tokens(prompt):
    return not bool(kept(prompt).any(1).all())


def has_more_videos_than_tokens_in_a_row(prompt):
    """Which qwen2_5_vl has no default seconds for."""
    if prompt.spec.video_time != "seconds" or prompt.second_per_grid_ts is not None:
        return False
    return len(runs_and_blocks(prompt, 2)[0]) > prompt.input_ids.shape[1]


def assert_alike(prompt):
    ours, theirs = patched_answer(prompt)
    sound = grids_are_sound(prompt) and seconds_are_sound(prompt)
    if sound and each_run_is_the_next_block(prompt):
        assert answered(ours), ours
        if has_a_row_without_tokens(prompt) or has_more_videos_than_tokens_in_a_row(prompt):
            assert not answered(theirs)
        else:
            assert_same(ours, theirs)
    elif not answered(ours):
        assert isinstance(ours, ValueError), ours
    # Else the prompt has frames with nothing between them, or zeros for a grid, which we know.


def cropped(prompt, start, stop):
    """Return the prompt less tokens at both ends, with all of its grids."""

    def crop(values):
        return None if values is None else values[:, start:stop]

    return replace(
        prompt,
        input_ids=crop(prompt.input_ids),
        attention_mask=crop(prompt.attention_mask),
        mm_token_type_ids=crop(prompt.mm_token_type_ids),
    )


def with_grids_left_over(prompt, images, videos):
    def more(grids, others):
        return torch.tensor([*grid_list(grids), *others]).reshape(-1, 3) if others else grids

    seconds = prompt.second_per_grid_ts
    if seconds is not None and videos:
        extra = [0.5] * len(videos)
        if torch.is_tensor(seconds):
            seconds = torch.cat((seconds, seconds.new_tensor(extra)))
        else:
            seconds = [*seconds, *extra]
    return replace(
        prompt,
        image_grid_thw=more(prompt.image_grid_thw, images),
        video_grid_thw=more(prompt.video_grid_thw, videos),
        second_per_grid_ts=seconds,
    )


# With sides that a merge size of 2 does not divide.
LEFT_OVER = st.lists(st.sampled_from([[1, 4, 4], [2, 2, 6], [3, 5, 3]]), max_size=2)


@each_family
def test_conversations_are_answered_as_by_transformers(model_type):
    @given(conversations(spec_of_model(model_type)))
    def check(prompt):
        ours, theirs = patched_answer(prompt)
        assert_same(ours, theirs)

    check()


@each_rule
def test_left_over_grids_are_ignored_as_by_transformers(model_type):
    @given(conversations(spec_of_model(model_type)), LEFT_OVER, LEFT_OVER)
    def check(prompt, images, videos):
        ours, theirs = patched_answer(with_grids_left_over(prompt, images, videos))
        if all(t >= prompt.spec.temporal_merge_size for t, _, _ in videos):
            assert_same(ours, theirs)

    check()


@each_rule
def test_cropped_prompts_are_answered_as_by_transformers(model_type):
    @given(conversations(spec_of_model(model_type)), st.data())
    def check(prompt, data):
        seq_len = prompt.input_ids.shape[1]
        start = data.draw(st.integers(0, seq_len - 1))
        stop = data.draw(st.integers(start + 1, seq_len))
        assert_alike(cropped(prompt, start, stop))

    check()


@each_rule
def test_soup_is_answered_as_by_transformers_or_shows_why_not(model_type):
    spec = spec_of_model(model_type)

    @given(
        st.one_of(
            token_soup(spec),
            token_soup(spec, touching=True, zero_grids=True),
            token_soup(spec, fit=False, touching=True, zero_grids=True),
        )
    )
    def check(prompt):
        assert_alike(prompt)

    check()


@pytest.mark.parametrize(
    ("model_type", "rows", "arguments"),
    [
        pytest.param("glm4v", ["tI"], {"image_grid_thw": [[1, 2, 2]] * 2}, id="an image left over"),
        pytest.param("glm4v", ["[I]"], {"video_grid_thw": [[2, 2, 2]]}, id="a frame left over"),
        pytest.param("qwen2_vl", ["tt"], {"video_grid_thw": [[2, 2, 2]]}, id="no video at all"),
        pytest.param("qwen2_vl", ["tIIIIIIt"], {"image_grid_thw": [[1, 5, 7]]}, id="odd sides"),
        pytest.param(
            "qwen2_vl",
            ["ttV"],
            {"image_grid_thw": [[1, 4, 4]], "video_grid_thw": [[1, 2, 2]]},
            id="an image left over before a video",
        ),
    ],
)
def test_what_vecrope_refuses_is_answered_as_by_transformers(model_type, rows, arguments):
    prompt = prompt_of(model_type, *rows, **arguments)
    ours, theirs = patched_answer(prompt)
    assert_same(ours, theirs)
    with pytest.raises(ValueError, match=r"left over|divisible"):
        get_rope_index(spec=prompt.spec, **prompt.arguments())


@pytest.mark.parametrize("value", [2, 0.5, -1, True])
def test_a_token_is_where_the_mask_is_not_0(value):
    prompt = prompt_of("qwen2_vl", "ttIIt", mask=["01111"], image_grid_thw=[[1, 2, 4]])
    mask = prompt.attention_mask * value if value is not True else prompt.attention_mask.bool()
    ours, theirs = patched_answer(replace(prompt, attention_mask=mask))
    assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.uint8])
def test_types_and_grids_of_any_integers(dtype):
    prompt = prompt_of("qwen3_vl", "tIIt", image_grid_thw=[[1, 2, 4]])
    types = prompt.mm_token_type_ids.to(dtype)
    grids = prompt.image_grid_thw.to(torch.int32)
    ours, theirs = patched_answer(replace(prompt, mm_token_type_ids=types, image_grid_thw=grids))
    assert_same(ours, theirs)


def test_positions_are_of_the_dtype_of_the_ids():
    prompt = prompt_of("qwen2_vl", "tIIt", image_grid_thw=[[1, 2, 4]])
    ours, theirs = patched_answer(replace(prompt, input_ids=prompt.input_ids.int()))
    assert_same(ours, theirs)
    assert ours[0].dtype == torch.int32


def test_types_are_believed_and_not_the_ids():
    prompt = prompt_of("qwen2_vl", "tIVt", image_grid_thw=[[1, 2, 2]], video_grid_thw=[[1, 2, 2]])
    ours, theirs = patched_answer(replace(prompt, input_ids=torch.zeros_like(prompt.input_ids)))
    assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_seconds_are_rounded_as_in_their_dtype(dtype):
    """A batch that is cast to the model's dtype has its seconds cast, too."""
    grids = [[300, 2, 2], [40, 2, 2], [9, 2, 2]]
    rows = "t".join("V" * t for t, _, _ in grids)
    prompt = prompt_of(
        "qwen2_5_vl",
        rows,
        video_grid_thw=grids,
        second_per_grid_ts=torch.tensor([0.08, 2 / 3, 2 / 0.3]).to(dtype),
    )
    ours, theirs = patched_answer(prompt)
    assert_same(ours, theirs)


@pytest.mark.parametrize("seconds", [[0.5, 0.7], torch.tensor([0.5, 0.7])], ids=["list", "tensor"])
def test_seconds_beyond_the_videos_are_left_over(seconds):
    for arguments in ({"video_grid_thw": [[3, 2, 2]]}, {}):
        rows = "tVVVt" if arguments else "tt"
        prompt = prompt_of("qwen2_5_vl", rows, second_per_grid_ts=seconds, **arguments)
        ours, theirs = patched_answer(prompt)
        assert_same(ours, theirs)


def test_what_else_the_model_is_called_with_is_ignored():
    prompt = prompt_of("qwen2_vl", "tIIt", image_grid_thw=[[1, 2, 4]])
    module = module_of("qwen2_vl")
    expected = module.get_rope_index(**prompt.arguments())
    with patched(module):
        assert_same(
            module.get_rope_index(**prompt.arguments(), second_per_grid_ts=3, use_cache=True),
            expected,
        )


@pytest.mark.parametrize(
    ("model_type", "rows", "arguments"),
    [
        pytest.param(
            "qwen2_vl", ["tII"], {"image_grid_thw": [[1, 2, 2]] * 2}, id="touching images"
        ),
        pytest.param("glm4v", ["[II]"], {"video_grid_thw": [[2, 2, 2]]}, id="touching frames"),
        pytest.param("qwen2_vl", ["tt", "tt"], {"mask": ["11", "00"]}, id="a row without tokens"),
        pytest.param("qwen2_vl", ["V", "V"], {"video_grid_thw": [[1, 2, 2]] * 2}, id="many videos"),
    ],
)
def test_where_transformers_fails_there_is_the_answer_of_the_reference(model_type, rows, arguments):
    spec = spec_of_model(model_type)
    prompt = Prompt.from_symbols(spec, rows, **arguments)
    ours, theirs = patched_answer(prompt)
    assert_same(ours, prompt.expected())
    if "V" not in rows:
        assert not answered(theirs)


def test_int32_ids_with_a_mask_which_transformers_cannot_write():
    prompt = prompt_of("qwen2_vl", "tII", mask=["111"], image_grid_thw=[[1, 2, 4]])
    ours, theirs = patched_answer(replace(prompt, input_ids=prompt.input_ids.int()))
    assert isinstance(theirs, RuntimeError)
    assert_same(ours, (prompt.expected()[0].int(), prompt.expected()[1]))


# Not answered

ACCIDENTS = [
    pytest.param(["III"], {"image_grid_thw": [[1, 2, 2]]}, "beyond the last grid", id="spread"),
    pytest.param(
        ["IItI"], {"image_grid_thw": [[1, 2, 2], [1, 2, 4]]}, "truncated", id="the lengths cancel"
    ),
]


@pytest.mark.parametrize(("rows", "arguments", "message"), ACCIDENTS)
def test_answers_by_accident_are_refused(rows, arguments, message):
    ours, theirs = patched_answer(prompt_of("qwen2_vl", *rows, **arguments))
    assert answered(theirs)
    with pytest.raises(ValueError, match=message):
        raise ours


@pytest.mark.parametrize(
    ("model_type", "rows", "arguments", "message"),
    [
        pytest.param(
            "glm4v",
            ["tt", "tII"],
            {"image_grid_thw": [[1, 4, 4], [1, 2, 2]]},
            r"row 1, image 0: its grid \(1, 4, 4\) needs 4 tokens, got 2 .* truncated inside",
            id="cut in an image",
        ),
        pytest.param(
            "glm4v",
            ["[It", "[II"],
            {"video_grid_thw": [[2, 2, 4]]},
            r"row 0, frame 0 of video 0: its grid .* needs 2 tokens, got 1",
            id="cut in a frame",
        ),
        pytest.param(
            "qwen2_vl",
            ["tVV"],
            {"image_grid_thw": [[1, 2, 2]], "video_grid_thw": [[3, 2, 2]]},
            r"row 0, video 0: its grid \(3, 2, 2\) needs 3 tokens, got 2",
            id="cut in a video, an image left over",
        ),
        pytest.param(
            "qwen2_vl",
            ["tVV"],
            {"video_grid_thw": [[1, 2, 2]]},
            "row 0 holds video tokens beyond the last grid: expected 1 .* got 2",
            id="too many tokens",
        ),
        pytest.param(
            "qwen2_vl",
            ["ttI"],
            {"image_grid_thw": [[1, 1, 2]]},
            r"image_grid_thw row 0 must have a height and width of at least spatial_merge_size 2",
            id="no token in a grid",
        ),
        pytest.param(
            "qwen2_vl",
            ["tI"],
            {},
            "row 0 holds image tokens beyond the last grid",
            id="no grid",
        ),
    ],
)
def test_prompts_without_positions_are_refused(model_type, rows, arguments, message):
    width = max(map(len, rows))
    prompt = prompt_of(model_type, *(row.rjust(width, "t") for row in rows), **arguments)
    ours, theirs = patched_answer(prompt)
    assert not answered(theirs)
    with pytest.raises(ValueError, match=message):
        raise ours


def test_types_are_asked_for():
    prompt = prompt_of("qwen2_vl", "tI", image_grid_thw=[[1, 2, 2]])
    ours, _ = patched_answer(replace(prompt, mm_token_type_ids=None))
    with pytest.raises(TypeError, match="got NoneType: pass what the processor returns"):
        raise ours


def test_seconds_of_every_video_are_asked_for():
    prompt = prompt_of(
        "qwen2_5_vl", "tVtV", video_grid_thw=[[1, 2, 2]] * 2, second_per_grid_ts=[0.5]
    )
    ours, _ = patched_answer(prompt)
    with pytest.raises(ValueError, match=r"must have shape \(2,\), one for each row"):
        raise ours


def test_a_type_that_is_none():
    prompt = prompt_of("qwen2_vl", "tI", image_grid_thw=[[1, 2, 2]])
    ours, theirs = patched_answer(replace(prompt, mm_token_type_ids=torch.tensor([[0, 3]])))
    assert isinstance(theirs, KeyError)
    with pytest.raises(ValueError, match="must hold 0 or 1 or 2, got 3 in row 0, token 1"):
        raise ours


# Static and traced


@each_rule
@pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])
def test_left_over_grids_are_ignored_by_the_static_form(model_type, validate):
    module = module_of(model_type)

    @given(conversations(spec_of_model(model_type)), LEFT_OVER, LEFT_OVER)
    def check(prompt, images, videos):
        changed = with_grids_left_over(prompt, images, videos)
        assume(grids_are_sound(changed))
        theirs = outcome(module, changed)
        ours = rope_index_of(
            Inputs(**changed.arguments(), lenient=True),
            changed.spec,
            validate=validate,
            form="static",
        )
        assert_same(ours, theirs)

    check()


TWO_ROWS = {
    "few": (["tt<II>t", "t<II>tt"], [[1, 2, 4]] * 3),
    "more": (["tt<IIII>tt<II>t", "t<II>ttttttttttt"], [[1, 4, 4], [1, 2, 4], [1, 2, 4]]),
}


def two_rows(model_type, name):
    rows, grids = TWO_ROWS[name]
    width = max(map(len, rows))
    rows = [row.ljust(width, "t") for row in rows]
    return prompt_of(model_type, *rows, mask=["1" * width] * 2, image_grid_thw=grids)


@pytest.mark.parametrize("target", [Qwen2VLModel, None], ids=["class", "instance"])
def test_compiled_it_answers_the_same(target):
    module = module_of("qwen2_vl")
    with patched(target or module):
        function = torch.compile(
            lambda **arguments: module.get_rope_index(**arguments),
            fullgraph=True,
            dynamic=True,
            backend="eager",
        )
        for name in TWO_ROWS:
            arguments = two_rows("qwen2_vl", name).arguments()
            assert_same(function(**arguments), module.get_rope_index(**arguments))
        # One grid more than there are images is one left over, but half an image is none.
        arguments["mm_token_type_ids"] = arguments["mm_token_type_ids"].clone()
        arguments["mm_token_type_ids"][0, 3] = 0
        assert_no_answer(function(**arguments))


# Of a device that is not the CPU any build of torch has fake tensors.
def test_unchecked_it_depends_on_no_value():
    with FakeTensorMode(), patched(module_of("qwen2_5_vl"), validate=False) as module:
        ids = torch.empty((2, 7), dtype=torch.int64, device="meta")
        grids = torch.empty((3, 3), dtype=torch.int64, device="meta")
        position_ids, rope_deltas = module.get_rope_index(
            input_ids=ids,
            mm_token_type_ids=torch.empty_like(ids),
            image_grid_thw=grids,
            video_grid_thw=grids,
            second_per_grid_ts=torch.empty(3, device="meta"),
            attention_mask=torch.empty_like(ids),
        )
    assert (position_ids.shape, rope_deltas.shape) == ((3, 2, 7), (2, 1))
    assert (position_ids.device.type, rope_deltas.device.type) == ("meta", "meta")


def test_validate_false_checks_no_value():
    prompt = prompt_of("qwen2_vl", "tI", image_grid_thw=[[1, 4, 4]])
    ours, _ = patched_answer(prompt, validate=False)
    assert answered(ours)
