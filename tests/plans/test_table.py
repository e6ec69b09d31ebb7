"""A plan is a pytree that is copied, moved and saved."""

import copy
import io
import pickle

import pytest
import torch
from support import (
    assert_same,
)
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree

from tests.plans.cases import (
    GLM_IMAGE,
    PACED,
    PLAN,
    QWEN,
    example,
    examples,
    integers,
    tensors_of,
)
from vecrope import (
    concatenate_plans,
    plan_rope_index,
)
from vecrope.plans.table import index_dtype


def assert_same_plan(got, want):
    assert got is not want
    assert type(got) is type(want)
    assert (got.dtype, got.padding_value) == (want.dtype, want.padding_value)
    assert (got.num_tokens, got.seq_len) == (want.num_tokens, want.seq_len)
    assert_same([got.position_ids(), got.rope_deltas], [want.position_ids(), want.rope_deltas])
    assert_same([got.slice(1, 9)], [want.slice(1, 9)])


@pytest.mark.parametrize("spec", [QWEN, PACED], ids=["frames", "seconds"])
@pytest.mark.parametrize(
    "copied",
    [
        lambda plan: pytree.tree_unflatten(*pytree.tree_flatten(plan)),
        lambda plan: pytree.tree_unflatten(
            [leaf for _, leaf in pytree.tree_flatten_with_path(plan)[0]],
            pytree.tree_structure(plan),
        ),
        lambda plan: pickle.loads(pickle.dumps(plan)),
        copy.copy,
        copy.deepcopy,
    ],
    ids=["pytree", "pytree with paths", "pickle", "copy", "deepcopy"],
)
def test_a_copy_is_the_same_plan(copied, spec):
    plan = example(spec)
    assert_same_plan(copied(plan), plan)


def test_leaves_are_named():
    leaves, _ = pytree.tree_flatten_with_path({"plan": example()})
    names = [pytree.keystr(path) for path, _ in leaves]
    assert names == [
        f"['plan'].{name}" for name in ("rows", "entries", "num_tokens", "seq_len", "time_scale")
    ]


def test_to_another_device_and_to_its_own():
    plan = example()
    assert plan.to("cpu") is plan
    assert plan.to(torch.device("cpu")) is plan
    moved = plan.to("meta")
    assert {leaf.device.type for leaf in tensors_of(moved)} == {moved.device.type} == {"meta"}
    assert moved.position_ids().shape == (3, 2, 5)
    assert moved.nbytes == plan.nbytes
    with FakeTensorMode():
        fake = fake_plan()
        joined = concatenate_plans([fake, fake])
        assert {leaf.device.type for leaf in tensors_of(joined)} == {"meta"}


class Planned(torch.nn.Module):
    def forward(self, plan, ids, grids):
        other = plan_rope_index(ids, GLM_IMAGE, image_grid_thw=grids, validate=False, max_groups=12)
        return plan.slice(0, 8), other, other.decode(4)


def test_a_program_that_takes_and_returns_plans_is_saved_and_loaded():
    plans = examples(PACED)
    ids, grids = integers([[5, 6, 7, 16384]] * 2), integers([[1, 2, 3], [1, 1, 2]])
    program = torch.export.export(Planned(), (plans[0], ids, grids))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    positions, plan, decoded = loaded(plans[1], ids, grids.flip(0))
    want, other, want_decoded = Planned()(plans[1], ids, grids.flip(0))
    assert_same([positions, decoded], [want, want_decoded])
    assert (plan.dtype, plan.padding_value) == (torch.int64, 1)
    assert_same(tensors_of(plan), tensors_of(other))


def test_a_plan_is_saved_and_loaded():
    plan, file = example(), io.BytesIO()
    torch.save({"plan": plan}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["plan"]
    assert torch.equal(loaded.position_ids(), plan.position_ids())
    assert loaded.dtype == plan.dtype


def fake_plan(spec=QWEN):
    rows = torch.empty((2, 6), dtype=torch.int64, device="meta")
    grids = torch.empty((2, 3), dtype=torch.int64, device="meta")
    return plan_rope_index(
        rows, spec, image_grid_thw=grids, video_grid_thw=grids, validate=False, max_groups=5
    )


def test_a_plan_cannot_be_changed():
    with pytest.raises(AttributeError, match="cannot assign to field 'num_tokens'"):
        PLAN.num_tokens = 3


@pytest.mark.parametrize(("num_tokens", "dtype"), [(2**30 - 1, torch.int32), (2**30, torch.int64)])
def test_indices_of_many_tokens_are_wide(num_tokens, dtype):
    assert index_dtype(num_tokens) is dtype
