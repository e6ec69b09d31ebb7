"""Every family under every convention, and any spec at all: the pipeline against the loop."""

from dataclasses import replace
from functools import partial
from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    EVERYWHERE,
    build,
    each_core,
    each_rule,
    pairs,
    spec_of,
    transformers_rope_index,
)
from support import (
    FITTING,
    assert_same,
    choose_rows,
    fitting,
    misfitting,
    rope_index,
)

from vecrope import MRopeSpec, get_rope_index, plan_rope_index
from vecrope.short_by_ids import short_by_ids_rope_index
from vecrope.testing import Prompt, assert_matches

FORMS = {"exact": {}, "static": {"form": "static"}}
# Of what differs little from one set of rules to the next.
HALF = settings.default.max_examples // 2
UNSEEN = count(400_000)
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def any_prompt(spec):
    """Draw any kind of prompt; of the last kind the reference refuses most."""
    return st.one_of(*(strategy(spec) for strategy in FITTING.values()), misfitting(spec))


def by_ids(spec, **options):
    """Return vecrope's function of a prompt's arguments, less the types."""

    def function(**arguments):
        return get_rope_index(spec=spec, **{**arguments, "mm_token_type_ids": None}, **options)

    return function


@each_core
def test_the_loop_is_equalled_or_both_refuse(model_type, convention):
    spec = spec_of(model_type, convention)

    @given(any_prompt(spec))
    def check(prompt):
        for form in FORMS.values():
            assert_matches(by_ids(spec, **form), prompt)

    check()


@each_rule
def test_types_say_what_the_ids_say(spec):
    @settings(max_examples=HALF)
    @given(fitting(spec))
    def check(prompt):
        for form in FORMS.values():
            answer = rope_index(prompt, mm_token_type_ids=prompt.mm_token_type_ids, **form)
            assert_same(answer, prompt.expected())

    check()


@each_form
@each_rule
def test_types_are_believed_where_the_ids_would_fit_as_well(spec, form):
    if spec.image_token_id is None:
        return
    side = 2 * spec.spatial_merge_size
    prompt = Prompt.from_symbols(spec, ["ttt<IIII>t"], image_grid_thw=[[1, side, side]])
    ids = Prompt.from_symbols(spec, ["<IIII>tttt"]).input_ids
    answer = rope_index(prompt, input_ids=ids, mm_token_type_ids=prompt.mm_token_type_ids, **form)
    assert_same(answer, prompt.expected())


@each_form
def test_a_video_may_begin_with_the_first_token(form):
    """By its type, though nothing stands before it that could tell it from a frame before."""
    plan = plan_rope_index(
        *(torch.zeros((1, 4), dtype=torch.int64), spec_of("glm4v", "vllm")),
        video_grid_thw=torch.tensor([[2, 2, 2]]),
        mm_token_type_ids=torch.tensor([[2, 0, 2, 0]]),
        **form,
    )
    assert plan.position_ids().tolist() == [[[0, 1, 2, 3]]] * 3


@each_rule
def test_a_rows_answer_does_not_depend_on_the_others(spec):
    @settings(max_examples=HALF)
    @given(fitting(spec), st.data())
    def check(prompt, data):
        rows = data.draw(st.lists(st.integers(0, len(prompt.input_ids) - 1), min_size=1))
        position_ids, rope_deltas = rope_index(prompt)
        chosen = rope_index(choose_rows(prompt, rows))
        assert_same(chosen, (position_ids[:, rows], rope_deltas[rows]))

    check()


@each_rule
def test_packed_rows_are_answered_as_rows(spec):
    @settings(max_examples=HALF)
    @given(fitting(spec))
    def check(prompt):
        batch, seq_len = prompt.input_ids.shape
        mask = prompt.attention_mask
        packed = {
            "input_ids": prompt.input_ids.flatten(),
            "attention_mask": None if mask is None else mask.flatten(),
            "cu_seqlens": torch.arange(batch + 1) * seq_len,
        }
        position_ids, rope_deltas = rope_index(prompt)
        for form in FORMS.values():
            answer = rope_index(prompt, **packed, **form)
            assert_same(answer, (position_ids.flatten(1), rope_deltas))

    check()


@each_form
@each_rule
def test_int32_ids_give_positions_of_the_dtype_of_the_spec(spec, form):
    @settings(max_examples=HALF)
    @given(fitting(spec))
    def check(prompt):
        position_ids, rope_deltas = prompt.expected()
        dtype = {"ids": torch.int32, "int64": torch.int64}[spec.position_dtype]
        answer = rope_index(prompt, input_ids=prompt.input_ids.int(), **form)
        assert_same(answer, (position_ids.to(dtype), rope_deltas))

    check()


@each_form
@each_rule
def test_no_tokens_give_no_positions_of_the_dtype_of_the_spec(spec, form):
    ids = torch.empty((3, 0), dtype=torch.int32)
    position_ids, rope_deltas = get_rope_index(ids, spec, **form)
    assert position_ids.shape == (3, 3, 0)
    assert position_ids.dtype == (torch.int64 if spec.position_dtype == "int64" else torch.int32)
    assert_same([rope_deltas], [torch.zeros(3, 1, dtype=torch.int64)])


each_usual_prompt = pytest.mark.parametrize(
    ("model_type", "row", "videos"),
    [
        ("qwen2_vl", "t<II>t<VVVVVVVV>tt<VV>t", [[2, 4, 4], [1, 2, 4]]),
        ("qwen2_5_vl", "t<II>t<VVVVVVVV>tt<VV>t", [[2, 4, 4], [1, 2, 4]]),
        ("qwen2_5_vl", "t<II>t<VVVVVVVV>tt", [[2, 4, 4]]),
        ("qwen3_vl", "t<II>t<VV>tt<VV>tttttttt", [[2, 4, 2]]),
        ("cosmos3_edge", "t<II>t<VV>tt<VV>tttttttt", [[2, 4, 2]]),
        ("ernie4_5_vl_moe", "t<II>t[VVVVVVVV]tt[VV]tt", [[5, 4, 4], [2, 2, 4]]),
        ("glm4v", "t<II>t[<II>t<II>]ttttttt", [[2, 2, 4]]),
    ],
)


@pytest.mark.parametrize("convention", EVERYWHERE)
@each_usual_prompt
def test_usual_prompts_take_no_segment_table(model_type, row, videos, convention, monkeypatch):
    """Of any family, as a row or as a padded batch, from ids and from types, beside another row."""
    monkeypatch.setattr("vecrope.rope_index.build_plan", None)
    grids = {"image_grid_thw": [[1, 2, 4]], "video_grid_thw": videos}
    single = build(model_type, convention, [row], **grids)
    text = "t" * (len(row) - 1) + "<"
    double = build(model_type, convention, [row, text], **grids)
    masked = build(model_type, convention, [row], mask=["1" * (len(row) - 1) + "0"], **grids)
    # With a mask the table has to see whether frames touch.
    for prompt in (single, double, masked) if single.spec.frames_may_touch else (single, double):
        assert_same(rope_index(prompt), prompt.expected())
        types = prompt.mm_token_type_ids
        assert_same(rope_index(prompt, mm_token_type_ids=types), prompt.expected())


@pytest.mark.parametrize("convention", EVERYWHERE)
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl"])
def test_images_in_one_row_and_a_video_in_the_next(model_type, convention):
    grids = {"image_grid_thw": [[1, 2, 4]], "video_grid_thw": [[1, 2, 4]]}
    prompt = build(model_type, convention, ["t<II>t", "t<VV>t"], **grids)
    assert_same(rope_index(prompt), prompt.expected())


@pytest.mark.parametrize("convention", EVERYWHERE)
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "ernie4_5_vl_moe"])
def test_images_of_as_many_tokens_keep_their_sides(model_type, convention):
    for grids in ([[1, 2, 4], [1, 4, 2]], [[1, 4, 2], [1, 2, 4]]):
        prompt = build(model_type, convention, ["t<II>t<II>tt"], image_grid_thw=grids)
        assert_same(rope_index(prompt), prompt.expected())


@pytest.mark.parametrize("convention", ["transformers", "vllm"])
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl"])
def test_images_and_frames_may_touch(model_type, convention):
    grids = {"image_grid_thw": [[1, 2, 4]] * 2, "video_grid_thw": [[1, 2, 4]]}
    prompt = build(model_type, convention, ["tIIIIVVt"], **grids)
    assert_same(rope_index(prompt), prompt.expected())


@pytest.mark.parametrize("convention", EVERYWHERE)
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "ernie4_5_vl_moe"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_video_reaches_beyond_the_end_from_behind_images(rows, model_type, convention):
    for row in ("t<IIII>t<IIII>t[<VVVVVVVV>]", "[<VVVVVVVV>]t<IIII>t"):
        prompt = build(
            *(model_type, convention, [row, "t" * len(row)][:rows]),
            image_grid_thw=[[1, 4, 4]] * (row.count("I") // 4),
            video_grid_thw=[[8 * spec_of(model_type, convention).temporal_merge_size, 2, 2]],
        )
        assert_same(rope_index(prompt), prompt.expected())


@each_form
@pytest.mark.parametrize("padding_value", [0, 50])
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "ernie4_5_vl_moe"])
def test_masked_tokens_reach_nowhere_beside_a_video_that_reaches_far(
    model_type, padding_value, form
):
    prompt = build(
        *(model_type, "transformers", ["t<VVVVVVVV>tt", "t" * 13]),
        mask=["1" * 12 + "0", "0" * 13],
        fields={"padding_value": padding_value},
        video_grid_thw=[[8 * spec_of(model_type, "transformers").temporal_merge_size, 2, 2]],
    )
    assert_same(rope_index(prompt, **form), prompt.expected())


@pytest.mark.parametrize(
    ("family", "row", "images", "videos"),
    [
        *(
            (family, row, images, videos)
            for family in pairs(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), *EVERYWHERE)
            for row, images, videos in (
                ("t<II>t<II>t", [[1, 2, 4]] * 2, None),
                ("t<VV>t", None, [[1, 2, 4]]),
                ("t<II>t<VVVV>t", [[1, 2, 4]], [[1, 4, 4]]),
            )
        ),
        *(
            (family, "t<VVVVVVVV>t", None, [[4, 2, 4]])
            for family in pairs(("qwen2_vl", "qwen2_5_vl"), *EVERYWHERE)
        ),
        *(
            (family, "t<VV>t<VV>t<VV>t", None, [[3, 2, 4]])
            for family in pairs("qwen3_vl", *EVERYWHERE)
        ),
        (("ernie4_5_vl_moe", "transformers"), "t<II>t[VVVV]t", [[1, 2, 4]], [[4, 2, 4]]),
    ],
)
def test_the_form_of_short_prompts_takes_the_usual_ones(family, row, images, videos, monkeypatch):
    monkeypatch.setattr("vecrope.rope_index.regular_rope_index", None)
    monkeypatch.setattr("vecrope.rope_index.build_plan", None)
    prompt = build(*family, [row], image_grid_thw=images, video_grid_thw=videos)
    assert_same(rope_index(prompt), prompt.expected())
    with torch.device("meta"):
        answer = rope_index(prompt)
    assert_same(answer, prompt.expected())


@pytest.mark.parametrize(("limit", "takes_it"), [(10, True), (9, False)])
def test_the_form_of_short_prompts_counts_tokens_and_placeholders(limit, takes_it, monkeypatch):
    prompt = build(
        *("qwen3_vl", "transformers", ["t<I>t<V>"]),
        image_grid_thw=[[1, 2, 2]],
        video_grid_thw=[[1, 2, 2]],
    )
    grids = prompt.image_grid_thw, prompt.video_grid_thw
    monkeypatch.setattr("vecrope.short_by_ids._MAX_TOKENS", limit)
    answer = short_by_ids_rope_index(prompt.input_ids, prompt.spec, *grids, None)
    assert (answer is not None) == takes_it
    assert_same(rope_index(prompt), prompt.expected())


@pytest.mark.parametrize("convention", EVERYWHERE)
def test_blocks_of_one_patch_take_no_segment_table(convention, monkeypatch):
    monkeypatch.setattr("vecrope.rope_index.build_plan", None)
    fields, rows = {"spatial_merge_size": 1}, ["t<V>t<V>t", "tttttttt<"]
    prompt = build("qwen2_vl", convention, rows, fields=fields, video_grid_thw=[[1, 1, 1]] * 2)
    assert_same(rope_index(prompt), prompt.expected())


@pytest.mark.parametrize(
    ("image", "video"),
    [
        *((5, 6), (6, 5), (5, 7), (7, 5), (0, 1), (1, 0), (255, 256), (256, 255), (257, 256)),
        *((511, 513), (5, None), (256, None)),
    ],
)
@pytest.mark.parametrize("rows", [1, 2])
def test_ids_next_to_those_of_placeholders_are_text(rows, image, video, monkeypatch):
    monkeypatch.setattr("vecrope.rope_index.build_plan", None)
    monkeypatch.setattr("vecrope.rope_index.short_by_ids_rope_index", lambda *_: None)
    spec = spec_of("qwen3_vl", "transformers")
    spec = replace(spec, image_token_id=image, video_token_id=video)
    ids = {image, video} - {None}
    near = {token_id + by for token_id in ids for by in (-256, -3, -2, -1, 1, 2, 3, 256)} - ids
    near = torch.tensor(sorted(token_id for token_id in near if token_id >= 0))
    row = "t" * len(near) + "IIt" + ("t" if video is None else "V") * 2 + "t" * len(near)
    prompt = Prompt.from_symbols(
        spec,
        [row] * rows,
        image_grid_thw=[[1, 4, 2]] * rows,
        video_grid_thw=None if video is None else [[1, 2, 4]] * rows,
    )
    prompt.input_ids[:, : len(near)] = near
    prompt.input_ids[:, -len(near) :] = near.flip(0)
    assert_same(rope_index(prompt), prompt.expected())


@pytest.mark.parametrize("convention", EVERYWHERE)
@each_usual_prompt
def test_nothing_depends_on_the_default_device(model_type, row, videos, convention):
    # What is kept of a spec is made at its first use.
    fields = {"image_token_id": next(UNSEEN)}
    grids = {"image_grid_thw": [[1, 2, 4]], "video_grid_thw": videos}
    single = build(model_type, convention, [row], fields=fields, **grids)
    double = build(model_type, convention, [row, "t" * len(row)], fields=fields, **grids)
    for prompt in (single, double):
        seconds = (
            [1.0] * len(prompt.video_grid_thw) if prompt.spec.video_time == "seconds" else None
        )
        expected = replace(prompt, second_per_grid_ts=seconds).expected()
        for form in FORMS.values():
            with torch.device("meta"):
                answer = rope_index(prompt, second_per_grid_ts=seconds, **form)
            assert {tensor.device.type for tensor in answer} == {"cpu"}
            assert_same(answer, expected)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "rows", [["tt<", "II>", "<II"], ["ttt<", "II>t", "<II>"]], ids=["image last", "text last"]
)
@pytest.mark.parametrize("convention", EVERYWHERE)
def test_a_marker_at_the_end_of_a_row_announces_nothing_in_the_next(convention, rows, form):
    prompt = build("qwen2_vl", convention, rows, image_grid_thw=[[1, 2, 4]] * 2)
    if convention == "sglang":
        with pytest.raises(ValueError, match=r"row 1, image 0: its grid .* vision_start_token_id"):
            rope_index(prompt, **form)
    else:
        assert_same(rope_index(prompt, **form), prompt.expected())


# Any spec at all


@st.composite
def any_spec(draw):
    """Draw the rules of a family that may not exist."""
    marker_rule = draw(st.sampled_from(["none", "last", "count", "adjacent"]))
    by_markers = marker_rule in ("last", "count")
    separate = draw(st.booleans())
    fields = {"frames_may_touch": draw(st.booleans())}
    if not separate:
        fields["temporal_merge_size"] = draw(st.integers(1, 3))
        if draw(st.booleans()):
            fields["video_time"] = "seconds"
            fields["tokens_per_second"] = draw(st.sampled_from([1, 2, 4, 25, 0.1, 1 / 3, 2.5]))
            fields["default_seconds"] = draw(st.none() | st.sampled_from([1.0, 0.08, 2 / 3]))
    return MRopeSpec(
        model_type="invented",
        convention=draw(st.sampled_from(["sglang", "transformers", "vllm"])),
        image_token_id=5 if by_markers else draw(st.sampled_from([5, 5, None])),
        video_token_id=None if by_markers else draw(st.sampled_from([6, 6, None])),
        video_start_token_id=7 if by_markers else None,
        video_end_token_id=8 if by_markers else None,
        vision_start_token_id=9 if marker_rule == "adjacent" else draw(st.sampled_from([9, None])),
        spatial_merge_size=draw(st.integers(1, 3)),
        marker_rule=marker_rule,
        separate_frames=separate,
        image_time=draw(st.sampled_from(["frames", "none"])),
        time_order=draw(st.sampled_from(["rate", "seconds"])),
        time_dtype=draw(st.sampled_from(["given", "float32", "float64"])),
        multi_frame_images=draw(st.booleans()),
        span_rule=draw(st.sampled_from(["thw", "hw"])),
        mask_rule="ignore"
        if marker_rule == "adjacent"
        else draw(st.sampled_from(["skip", "ignore"])),
        padding_value=draw(st.sampled_from([0, 1, -100])),
        delta_length=draw(st.sampled_from(["padded", "valid"])),
        position_dtype=draw(st.sampled_from(["ids", "int64"])),
        **fields,
    )


@given(any_spec(), st.data())
def test_any_spec_at_all_is_numbered_as_the_loop_numbers_it(spec, data):
    prompt = data.draw(any_prompt(spec))
    for form in FORMS.values():
        assert_matches(by_ids(spec, **form), prompt)


# Seconds


@pytest.mark.parametrize("order", ["rate", "seconds"])
@pytest.mark.parametrize("dtype", ["given", "float32", "float64"])
@pytest.mark.parametrize(
    "kind", [list, partial(torch.tensor, dtype=torch.float32), torch.DoubleTensor]
)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_seconds_of_every_rate_are_rounded_as_the_loop_rounds_them(order, dtype, kind, form):
    frames = 60
    for rate in (1, 2, 4, 25, 0.1, 1 / 3):
        spec = replace(
            spec_of("qwen2_5_vl", "transformers"),
            tokens_per_second=rate,
            time_order=order,
            time_dtype=dtype,
        )
        seconds = [2 / fps for fps in (0.3, 1, 1.7, 3, 7, 23.976, 25, 29.97, 30)] + [0.0, 0.08]
        prompt = Prompt.from_symbols(
            spec,
            ["<" + "V" * frames + ">"] * len(seconds),
            video_grid_thw=[[frames, 2, 2]] * len(seconds),
            second_per_grid_ts=kind(seconds),
        )
        assert_same(rope_index(prompt, **form), prompt.expected())


@pytest.mark.parametrize("order", ["rate", "seconds"])
@pytest.mark.parametrize("dtype", ["given", "float32", "float64"])
@pytest.mark.parametrize("rate", [2, 25, 0.1])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_default_seconds_are_rounded_as_a_number_is(rate, order, dtype, form):
    for seconds in (0.08, 2 / 0.3, 1.0):
        spec = replace(
            spec_of("qwen2_5_vl", "transformers"),
            tokens_per_second=rate,
            time_order=order,
            time_dtype=dtype,
            default_seconds=seconds,
        )
        prompt = Prompt.from_symbols(spec, [f"<{'V' * 60}>"], video_grid_thw=[[60, 2, 2]])
        given = rope_index(prompt, second_per_grid_ts=[seconds], **form)
        assert_same(rope_index(prompt, **form), given)
        assert_same(given, prompt.expected())


@each_form
@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64],
    ids=str,
)
def test_seconds_of_any_dtype_are_rounded_as_transformers_rounds_them(dtype, form):
    for rate in (2, 25, 0.5):
        spec = replace(spec_of("qwen2_5_vl", "transformers"), tokens_per_second=rate)
        for seconds in (2 / 0.3, 2 / 23.976, 3.0):
            prompt = Prompt.from_symbols(
                spec,
                [f"<{'V' * 60}>"],
                video_grid_thw=[[60, 2, 2]],
                second_per_grid_ts=torch.tensor([seconds]).to(dtype),
            )
            assert_same(rope_index(prompt, **form), transformers_rope_index(prompt))


@each_rule
def test_a_wrong_type_is_found_wherever_it_is_read(spec):
    prompt = Prompt.from_symbols(spec, ["ttt"], mask=["011"])
    types = torch.tensor([[7, 0, 0]])
    if spec.mask_rule == "skip":
        assert_same(rope_index(prompt, mm_token_type_ids=types), prompt.expected())
        return
    with pytest.raises(ValueError, match="mm_token_type_ids must hold 0 or 1 or 2, got 7 in row 0"):
        rope_index(prompt, mm_token_type_ids=types)
