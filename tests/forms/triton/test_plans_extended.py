"""Plans made by kernels go on as those of the CPU: they know the markers that are open."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import spec_of
from support import assert_same

from tests.forms.triton.test_plans import by_kernels
from vecrope import extend_plan, plan_rope_index

# Videos told by the last marker, by their count, and by the marker right before them.
SPECS = {
    "-".join(name): spec_of(*name)
    for name in (("glm4v", "sglang"), ("glm4v", "transformers"), ("qwen2_vl", "sglang"))
}


@st.composite
def cut_prompts(draw, spec):
    """Draw the tokens of requests and where each is cut, and the grids of all and behind cuts."""
    names = "video_start_token_id", "video_end_token_id", "vision_start_token_id"
    markers = {getattr(spec, name) for name in names} - {None}
    loose = st.lists(st.sampled_from([7, 8, *sorted(markers)]), max_size=4)
    image = spec.image_token_id
    rows = draw(st.lists(st.tuples(loose, loose, st.booleans()), min_size=1, max_size=3))
    before, behind = [], []
    for first, then, has_picture in rows:
        before.append([7, *first])
        behind.append([*([image] * 2 if has_picture else []), *then])
    return before, behind, [has_picture for *_, has_picture in rows]


def packed(rows):
    bounds = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return torch.tensor([token for row in rows for token in row], dtype=torch.int64), bounds


def answer(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except ValueError as error:
        return type(error)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_next_turn_behind_a_plan_by_kernels_is_that_of_the_whole(spec):
    @settings(max_examples=max(settings.default.max_examples // 3, 2), deadline=None)
    @given(cut_prompts(spec), st.booleans())
    def check(case, by_videos):
        before, behind, pictures = case
        count = sum(pictures)
        name = "video_grid_thw" if by_videos else "image_grid_thw"
        grids = {name: torch.tensor([[1, 2, 4]] * count, dtype=torch.int64).view(-1, 3)}
        whole = [left + right for left, right in zip(before, behind, strict=True)]
        ids, bounds = packed(whole)
        expected = answer(plan_rope_index, ids, spec, cu_seqlens=bounds, **grids)
        ids, bounds = packed(before)
        with by_kernels():
            plan = plan_rope_index(ids, spec, cu_seqlens=bounds)
        assert torch.equal(plan.rows, plan_rope_index(ids, spec, cu_seqlens=bounds).rows)
        ids, bounds = packed(behind)
        got = answer(extend_plan, plan, ids, spec, cu_seqlens=bounds, **grids)
        if isinstance(expected, type):
            assert got is expected
            return
        assert_same(
            (got.position_ids(), got.rope_deltas, got.rows),
            (expected.position_ids(), expected.rope_deltas, expected.rows),
        )

    check()
