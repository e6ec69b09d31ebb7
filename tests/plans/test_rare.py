"""Plans of what is not checked, and calls of plans that few make."""

import pytest
import torch
from hypothesis import given
from own_support import SPECS as OWN_SPECS
from own_support import each_spec as each_own_spec
from support import assert_same, fitting

from tests.plans.cases import PLAN, QWEN, each_spec, integers
from vecrope import concatenate_plans, get_rope_index, plan_rope_index
from vecrope.inputs import Inputs
from vecrope.plans.from_locations import plan_of_tokens
from vecrope.prepare import prepare
from vecrope.testing import conversations


@pytest.mark.parametrize("spec", [QWEN, OWN_SPECS["isaac"]], ids=["groups", "lines"])
def test_an_unchecked_misfit_is_no_error_and_what_is_in_front_has_its_positions(spec):
    ids = integers([[7, spec.image_token_id, 8]])
    arguments = {"spec": spec, "image_grid_thw": integers([[1, 2, 4]])}
    with pytest.raises(ValueError, match="truncated inside the image"):
        plan_rope_index(ids, **arguments)
    plan = plan_rope_index(ids, validate=False, **arguments)
    got, want = plan.position_ids(), get_rope_index(ids, validate=False, **arguments)[0]
    assert got.shape == want.shape
    assert_same([got[:, :, :2]], [want[:, :, :2]])


@each_own_spec
def test_a_plan_with_room_for_each_token_is_the_exact_one(spec):
    @given(conversations(spec))
    def check(prompt):
        arguments = {**prompt.arguments(), "spec": spec}
        if prompt.input_ids.numel() == 0:
            return
        plans = [plan_rope_index(**arguments, max_groups=n) for n in (None, 999)]
        exact, roomy = ((p.position_ids(), p.rope_deltas, p.decode(3)) for p in plans)
        assert_same(roomy, exact)

    check()


@each_spec
def test_a_checked_plan_by_the_static_form_has_no_entry_too_many(spec):
    @given(fitting(spec))
    def check(prompt):
        arguments = prompt.arguments()
        prepared = prepare(Inputs(**arguments), spec, True, static=True)
        plan = plan_of_tokens(prepared, spec, True, None)
        expected = plan_rope_index(spec=spec, **arguments)
        assert_same([plan.position_ids(), plan.rows], [expected.position_ids(), expected.rows])
        assert len(plan.entries) == 1 or (plan.entries[:, 0] < plan.num_tokens).all()
        assert plan.entries.untyped_storage().nbytes() == plan.entries.nbytes

    check()


def test_without_tokens_a_plan_with_room_has_an_entry():
    ids = torch.zeros((2, 0), dtype=torch.int64)
    plan = plan_rope_index(ids, OWN_SPECS["isaac"], max_groups=4)
    assert plan.position_ids().shape == (3, 2, 0)
    assert plan.decode(2).tolist() == [[[0, 1], [0, 1]]] * 3


def test_rows_that_do_not_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"broadcasts with token_index \(2, 3\), got \(2,\)"):
        PLAN.at(integers([[0, 1, 2]] * 2), integers([0, 1]))


def test_a_step_fills_a_buffer_whose_columns_lie_apart():
    buffer = torch.full((6, 3), -5).t()
    got = PLAN.step([0, 2], [2, 3], out=buffer)
    assert_same([got], [PLAN.step([0, 2], [2, 3])])
    assert torch.equal(buffer[:, :5], got)
    assert buffer[:, 5].tolist() == [-5] * 3


def test_what_joining_fails_on_is_not_blamed_on_the_plans(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "cat", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            concatenate_plans([PLAN, PLAN])
