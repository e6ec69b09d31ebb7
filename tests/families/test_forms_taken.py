"""Which form answers usual prompts."""

from dataclasses import replace
from itertools import count

import pytest
import torch
from oracles import (
    EVERYWHERE,
    build,
    pairs,
    spec_of,
)
from support import (
    assert_same,
    rope_index,
)
from vecrope.short_by_ids import short_by_ids_rope_index

from tests.families.prompts import FORMS
from vecrope.testing import Prompt

UNSEEN = count(400_000)

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
