from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from own_support import (
    END,
    START,
    answer,
    assert_refused,
    from_sglang,
    ids_of,
    needs_sglang,
    single_rows,
)
from support import assert_same, grid_list, kept

from tests.own_rules.glm_image.calls import (
    SGLANG,
    TRANSFORMERS,
    decode,
    transformers_answers,
)
from vecrope.testing import conversations, token_soup


def test_prompts_are_answered_as_by_transformers():
    @given(conversations(TRANSFORMERS))
    def check(prompt):
        theirs, cached = transformers_answers(prompt)
        assert_same(answer(prompt), theirs)
        positions, lengths = decode(prompt)
        if cached is None:
            assert not lengths.any()
        else:
            # transformers leaves rows without grids out.
            assert_same([positions[lengths > 0]], [cached])

    check()


def test_without_images_per_sample_every_row_has_all_grids_as_with_transformers():
    @given(conversations(TRANSFORMERS, max_rows=1))
    def check(prompt):
        twice = replace(
            prompt,
            input_ids=prompt.input_ids.repeat(2, 1),
            mm_token_type_ids=prompt.mm_token_type_ids.repeat(2, 1),
            attention_mask=kept(prompt).long().repeat(2, 1),
            images_per_sample=None,
        )
        theirs, cached = transformers_answers(twice)
        assert_same(answer(twice), theirs)
        if cached is not None:
            assert_same([decode(twice)[0]], [cached])

    check()


def test_where_transformers_alone_answers_the_prompt_shows_why():
    @given(token_soup(TRANSFORMERS))
    def check(prompt):
        try:
            ours = answer(prompt)
        except ValueError:
            return
        grids = grid_list(prompt.image_grid_thw)
        if all(map(any, grids)):
            assert_same(ours, transformers_answers(prompt)[0])

    check()


@pytest.mark.parametrize(
    ("row", "grids", "match"),
    [
        pytest.param("t<II", [[1, 1, 2]], "truncated inside the image", id="truncated"),
        pytest.param("<I>I", [[1, 1, 1]], "got one outside of the 1 such images", id="stray"),
        pytest.param("<I><I>", [[1, 1, 1]], "outside of the 1 such images", id="no grid left"),
        pytest.param(
            "<II><I>", [[1, 1, 1], [1, 1, 2]], "needs 1 tokens between .* got 2", id="cancelling"
        ),
    ],
)
def test_transformers_answers_by_accident_where_we_refuse(row, grids, match):
    """It numbers the first three as text, and the length comes out right in the last."""
    prompt = SimpleNamespace(
        arguments=lambda: {"input_ids": ids_of(row), "image_grid_thw": torch.tensor(grids)}
    )
    transformers_answers(prompt)
    assert_refused(TRANSFORMERS, match, [row], image_grid_thw=grids)


# SGLang, from a wheel


def sglang_positions(prompt):
    """Return the (3, n) positions of a prompt of one row and of what it generates."""
    method = from_sglang(
        "multimodal/processors/glm_image.py",
        "GlmImageProcessor._compute_glm_image_mrope_positions",
        torch=torch,
    )._compute_glm_image_mrope_positions
    processor = SimpleNamespace(IMAGE_START_TOKEN_ID=START, IMAGE_END_TOKEN_ID=END)
    arguments = prompt.arguments()
    return method(processor, arguments["input_ids"][0], arguments.get("image_grid_thw"))


@needs_sglang
def test_prompts_are_answered_as_by_sglang():
    @given(conversations(SGLANG))
    def check(prompt):
        position_ids, rope_deltas = answer(prompt)
        decode_positions, lengths = decode(prompt)
        for row, single in enumerate(single_rows(prompt)):
            positions, delta = sglang_positions(single)
            ours = torch.cat(
                (position_ids[:, row], decode_positions[row, :, : lengths[row]]), dim=1
            )
            assert_same([ours, rope_deltas[row]], [positions, delta])

    check()
