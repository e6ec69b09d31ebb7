"""Answers that the upstreams gave, as recorded."""

import pytest
import torch
from support import assert_same

from tests.families.upstreams import BY_IDS_OR_TYPES, GOLDEN
from vecrope import MRopeSpec, get_rope_index

# Both upstreams ignore grids that no token asks for, we refuse them: most often an image got lost.
# The numbers of image and video grids that the upstream uses: with only those we answer as it does.
LEFT_OVER = {
    ("left-over grid", "sglang"): (1, 0),
    ("left-over grid", "transformers"): (1, 0),
    ("masked markers do not count", "sglang"): (1, 0),
    ("masked markers do not count", "transformers"): (1, 0),
    ("stray end first", "sglang"): (1, 1),
    ("two starts, one end", "sglang"): (1, 1),
    ("two starts, one end", "transformers"): (0, 2),
}

# transformers takes a grid of one token for a run of two, and then one of two tokens for a run of
# one. The row's length comes out right, so that it answers, by accident. We refuse.
CANCELLING_GRIDS = ("stray end first", "transformers")

# Both upstreams take one grid for all of a run and fail on its length. We cut the run.
ANSWERED = {"adjacent images": ([[0, 1, 2, 2, 4]], [[0, 1, 2, 2, 4]], [[0, 1, 2, 3, 4]])}

# Without any grid SGLang takes the largest position over the padding too, which holds 1. In these
# cases a row has one token, at position 0, and its delta is larger by 1. We follow SGLang's loop.
PADDING_IN_SGLANGS_DELTA = {"random 2", "random 12", "random 26", "random 30", "random 32"}


@pytest.mark.parametrize(("case", "upstream", "by_types"), BY_IDS_OR_TYPES)
def test_recorded_answers(case, upstream, by_types):
    name, expected = case["name"], case[upstream]
    config = {"model_type": "glm4v", **GOLDEN["config"], "vision_config": GOLDEN["config"]}
    spec = MRopeSpec.from_config(config, convention=upstream)
    names = ["input_ids", "attention_mask", "image_grid_thw", "video_grid_thw"]
    names += ["mm_token_type_ids"] * by_types
    tensors = {key: torch.tensor(case[key]) for key in names if case[key] is not None}

    if name in ANSWERED:
        assert expected == {"raises": "RuntimeError"}
        answer = get_rope_index(spec=spec, **tensors)
        assert_same(answer, (torch.tensor(ANSWERED[name]), torch.tensor([[0]])))
        return
    if "raises" in expected or (name, upstream) == CANCELLING_GRIDS:
        with pytest.raises(ValueError, match=r"row 0.* expected|row 0.* grid .* needs"):
            get_rope_index(spec=spec, **tensors)
        return
    if (name, upstream) in LEFT_OVER:
        with pytest.raises(ValueError, match="left over"):
            get_rope_index(spec=spec, **tensors)
        images, videos = LEFT_OVER[name, upstream]
        for key, used in (("image_grid_thw", images), ("video_grid_thw", videos)):
            if key in tensors:
                tensors[key] = tensors[key][:used]

    rope_deltas = torch.tensor(expected["rope_deltas"])
    if upstream == "sglang" and name in PADDING_IN_SGLANGS_DELTA:
        one_token = tensors["attention_mask"].sum(1, keepdim=True) == 1
        assert one_token.any()
        rope_deltas -= one_token.long()
    answer = get_rope_index(spec=spec, **tensors)
    assert_same(answer, (torch.tensor(expected["position_ids"]), rope_deltas))


def test_every_exception_names_a_recorded_case():
    names = {case["name"] for case in GOLDEN["cases"]}
    exceptions = {*dict(LEFT_OVER), CANCELLING_GRIDS}
    assert len(names) == len(GOLDEN["cases"]) == 66
    assert {name for name, _ in exceptions} | {*ANSWERED} | PADDING_IN_SGLANGS_DELTA <= names
