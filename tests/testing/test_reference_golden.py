"""The reference on answers that the upstreams gave."""

import json
from pathlib import Path

import pytest

from tests.testing.glm4v import CONVENTIONS
from vecrope.testing.reference import Refusal, get_rope_index

GOLDEN = json.loads((Path(__file__).parents[1] / "glm4v_golden.json").read_text())

# Both upstreams raise; the reference gives each image its grid.
ADJACENT_IMAGES = "adjacent images"

# Both upstreams ignore the grids that no token asks for; the reference refuses, unless told not to.
LEFT_OVER_GRIDS = {
    "left-over grid",
    "masked markers do not count",
    "stray end first",
    "two starts, one end",
}

# transformers takes a grid of one token for a run of two and then one of two tokens for a run of
# one: the lengths cancel, so that it answers. The reference refuses.
CANCELLING_GRIDS = ("stray end first", "transformers")

# Without any grid SGLang takes the largest position over the padding too, which holds 1. In these
# cases a row has fewer than two tokens, so that the padding is the largest.
PADDING_IN_SGLANGS_DELTA = {"random 2", "random 12", "random 26", "random 30", "random 32"}


def golden_arguments(golden):
    names = ("attention_mask", "image_grid_thw", "video_grid_thw")
    return {name: golden[name] for name in names if golden[name] is not None}


@pytest.mark.parametrize("upstream", CONVENTIONS)
@pytest.mark.parametrize("golden", GOLDEN["cases"], ids=lambda golden: golden["name"])
def test_the_upstreams_own_answers(golden, upstream):
    def answer(**more):
        return get_rope_index(
            golden["input_ids"],
            **GOLDEN["config"],
            **CONVENTIONS[upstream],
            **golden_arguments(golden),
            **more,
        )

    name, expected = golden["name"], golden[upstream]
    if name == ADJACENT_IMAGES:
        assert expected["raises"] == "RuntimeError"
        assert answer() == (
            [[[0, 1, 2, 2, 4]], [[0, 1, 2, 2, 4]], [[0, 1, 2, 3, 4]]],
            [[0]],
        )
        return
    if "raises" in expected or (name, upstream) == CANCELLING_GRIDS:
        with pytest.raises(Refusal, match="row 0"):
            answer()
        return
    left_over = name in LEFT_OVER_GRIDS
    if left_over:
        with pytest.raises(Refusal, match="left over"):
            answer()

    answers = [answer(allow_left_over=left_over)]
    if upstream == "transformers":
        types = golden["mm_token_type_ids"]
        answers.append(answer(mm_token_type_ids=types, allow_left_over=left_over))
    for position_ids, rope_deltas in answers:
        assert position_ids == expected["position_ids"]
        if upstream == "sglang" and name in PADDING_IN_SGLANGS_DELTA:
            for mask, got, want in zip(
                golden["attention_mask"], rope_deltas, expected["rope_deltas"], strict=True
            ):
                assert want[0] - got[0] == (1 if sum(mask) < 2 else 0)
        else:
            assert rope_deltas == expected["rope_deltas"]
