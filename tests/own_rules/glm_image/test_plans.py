import pytest
import torch
from hypothesis import given
from own_support import (
    SPECS,
    ids_of,
)
from support import assert_same

from tests.own_rules.glm_image.calls import (
    TRANSFORMERS,
    decode_of,
    each_convention,
    transformers_answers,
)
from vecrope import (
    concatenate_plans,
    plan_rope_index,
)
from vecrope.testing import conversations

# Plans


@each_convention
def test_a_plan_goes_on_with_the_images_to_be_generated(spec):
    plan = plan_rope_index(
        ids_of("ttt<"), spec, image_grid_thw=torch.tensor([[1, 2, 3], [1, 1, 2]])
    )
    images, lengths = decode_of(["ttt<"], spec, image_grid_thw=[[1, 2, 3], [1, 1, 2]])
    # Behind the end it counts from the prompt's length on.
    text = torch.arange(13, 16).expand(3, -1)
    want = torch.cat((torch.arange(4).expand(3, -1), images[0], text), 1)
    assert_same([plan.slice(0, 16)[:, 0], lengths], [want, torch.tensor([9])])
    assert torch.equal(plan.step([3], [8]), want[:, 3:11])
    # Of the grids, of the row, and the end of the stream.
    assert plan.nbytes == 28 * len(plan.entries) + 40 + 24 * (2 + 1 + 1)


def test_a_plan_generates_what_transformers_does():
    @given(conversations(TRANSFORMERS))
    def check(prompt):
        _, cached = transformers_answers(prompt)
        plan = plan_rope_index(spec=TRANSFORMERS, **prompt.arguments())
        rows = plan.rows[:, 6] > 0
        assert (cached is None) == (not rows.any())
        if cached is not None:
            # Shorter rows hold their last column again there, where a plan goes on in text.
            lengths = plan.rows[rows, 6]
            own = torch.arange(cached.shape[2]) < lengths.view(-1, 1, 1)
            ours = plan.decode(cached.shape[2])[:, rows].transpose(0, 1)
            assert torch.equal(ours.where(own, 0), cached.where(own, 0))
            assert int(lengths.max()) == cached.shape[2]

    check()


def test_sequences_in_a_row_generate_each_their_own():
    ids, numbers = ids_of("t<tt<tt"), torch.tensor([[1, 1, 2, 2, 2, 0, 0]])
    arguments = {
        "image_grid_thw": torch.tensor([[1, 1, 2], [1, 2, 1]]),
        "images_per_sample": torch.tensor([1, 1]),
    }
    plan = plan_rope_index(ids, TRANSFORMERS, sequence_ids=numbers, **arguments)
    assert plan.decode(4).tolist() == [
        [[2, 2, 4, 5], [3, 3, 5, 6]],
        [[2, 2, 4, 5], [3, 4, 5, 6]],
        [[2, 3, 4, 5], [3, 3, 5, 6]],
    ]
    assert not plan.rope_deltas.any()
    few = {"sequence_ids": numbers, "max_sequences": 1, "validate": False}
    none = plan_rope_index(ids, TRANSFORMERS, **few)
    assert int(none.decode(4).max()) < 0


def test_a_plan_of_images_joins_none_of_another_family():
    plans = [plan_rope_index(ids_of("t<"), SPECS[name]) for name in ("glm_image, sglang", "isaac")]
    with pytest.raises(ValueError, match=r"one family, got glm_image .* in plan 1, isaac"):
        concatenate_plans(plans)


def test_joined_plans_do_not_depend_on_the_default_device():
    grids = [torch.tensor([[1, 1, width]]) for width in (1, 2)]
    plans = [plan_rope_index(ids_of("t<"), TRANSFORMERS, image_grid_thw=grid) for grid in grids]
    with torch.device("meta"):
        decoded = concatenate_plans(plans).decode(4)
    assert decoded.tolist() == [
        [[2, 3, 4, 5], [2, 2, 4, 5]],
        [[2, 3, 4, 5], [2, 2, 4, 5]],
        [[2, 3, 4, 5], [2, 3, 4, 5]],
    ]


def test_a_compiled_plan_equals_an_eager_one_and_a_misfit_gives_no_answer():
    def first_tokens(ids, grids):
        plan = plan_rope_index(ids, TRANSFORMERS, image_grid_thw=grids)
        return plan.slice(0, 12), plan.decode(5, start=2)

    compiled = torch.compile(first_tokens, backend="eager", fullgraph=True, dynamic=True)
    grids = torch.tensor([[1, 1, 1], [1, 2, 2]])
    ids = ids_of("t<I>t", "ttttt")
    assert_same(compiled(ids, grids), first_tokens(ids, grids))
    positions, decoded = compiled(ids_of("t<II>", "ttttt"), grids)
    assert torch.equal(positions[:, :, :5], torch.full((3, 2, 5), -1))
    assert int(decoded.max()) < 0
