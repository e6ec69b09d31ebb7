"""Plans of families with a rule of their own: their positions, cut into lines."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omni_support import spec_of as omni_spec_of
from own_support import SPECS as OWN_SPECS
from own_support import minicpm_spec
from support import assert_no_answer, assert_same, at_most, spec_of

from vecrope import concatenate_plans, get_rope_index, plan_rope_index
from vecrope.families.rules import GlmImage
from vecrope.plans import table
from vecrope.plans.line_plan import LinePlan, entries_of_tokens
from vecrope.testing import Prompt, conversations

PROMPTS = {
    **{name: conversations(spec) for name, spec in OWN_SPECS.items()},
    **{
        f"minicpmv4_7-{name}": conversations(minicpm_spec(name))
        for name in ("transformers", "sglang")
    },
    **{
        f"{model_type}-{convention}": conversations(omni_spec_of(model_type, convention, 13))
        for model_type, convention in (
            ("qwen2_5_omni", "transformers"),
            ("qwen3_omni_moe", "transformers"),  # of fractions
            ("qwen3_omni_moe", "vllm"),
        )
    },
}
each_family = pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)


def arguments_of(prompt):
    return {"spec": prompt.spec, **prompt.arguments()}


def positions_behind(prompt, position_ids, rope_deltas, num_tokens):
    """Return the (A, B, num_tokens) positions of what follows each row: images, or by its delta."""
    lengths = torch.full((position_ids.shape[1],), position_ids.shape[2])
    if prompt.spec.delta_length == "valid" and prompt.attention_mask is not None:
        lengths = torch.as_tensor(prompt.attention_mask).sum(1)
    after = (rope_deltas.view(-1) + lengths).unsqueeze(1) + torch.arange(num_tokens)
    positions = after.to(position_ids.dtype).repeat(position_ids.shape[0], 1, 1)
    if isinstance(prompt.spec.own_rule, GlmImage):
        for row, columns in enumerate(prompt.expected_decode()):
            images = torch.tensor(columns[:num_tokens], dtype=positions.dtype).view(-1, 3).t()
            positions[:, row, : images.shape[1]] = images
    return positions


@each_family
def test_the_plan_is_that_of_the_positions(prompts):
    @given(prompts, st.integers(0, 12))
    def check(prompt, beyond):
        position_ids, rope_deltas = get_rope_index(**arguments_of(prompt))
        plan = plan_rope_index(**arguments_of(prompt))
        assert_same((plan.position_ids(), plan.rope_deltas), (position_ids, rope_deltas))
        decoded = positions_behind(prompt, position_ids, rope_deltas, beyond)
        assert torch.equal(plan.decode(beyond), decoded)
        late = beyond // 3
        assert torch.equal(plan.decode(beyond - late, start=late), decoded[:, :, late:])
        seq_len = position_ids.shape[2]
        whole = torch.cat((position_ids, decoded), 2)
        assert torch.equal(plan.slice(0, seq_len + beyond), whole)
        middle = seq_len // 2
        assert torch.equal(plan.slice(middle, seq_len + beyond), whole[:, :, middle:])

    check()


@each_family
def test_a_plan_on_a_cpu_is_made_without_positions(prompts, monkeypatch):
    def refuse(*_, **__):
        pytest.fail("the plan was made of positions")

    monkeypatch.setattr("vecrope.plans.from_blocks.own_rope_index", refuse)

    @at_most(10)
    @given(prompts)
    def check(prompt):
        plan = plan_rope_index(**arguments_of(prompt))
        assert torch.equal(plan.position_ids(), get_rope_index(**arguments_of(prompt))[0])

    check()


@each_family
def test_a_text_row_counts_the_unmasked_tokens(prompts):
    @given(prompts)
    def check(prompt):
        position_ids, _ = get_rope_index(**arguments_of(prompt))
        padded, _ = get_rope_index(
            **arguments_of(prompt), text_positions=True, pad_to_multiple_of=8
        )
        mask = torch.ones(position_ids.shape[1:], dtype=torch.int64)
        if prompt.spec.mask_rule == "skip" and prompt.attention_mask is not None:
            mask = torch.as_tensor(prompt.attention_mask)
        seq_len = position_ids.shape[2]
        assert padded.shape[2] == seq_len + -seq_len % 8
        counts = ((mask.cumsum(1) - 1) * mask).to(position_ids.dtype)
        assert torch.equal(padded[:, :, :seq_len], torch.cat((counts[None], position_ids)))

    check()


@each_family
def test_joined_plans_are_the_rows_of_all(prompts, monkeypatch):
    @given(prompts, prompts)
    def check(one, other):
        plans = [plan_rope_index(**arguments_of(prompt)) for prompt in (one, other)]
        if plans[0].dtype != plans[1].dtype:  # a batch without grids has the dtype of its ids
            with pytest.raises(ValueError, match="plans must have one dtype"):
                concatenate_plans(plans)
            return
        joined = concatenate_plans(plans)
        whole = torch.cat([plan.position_ids().flatten(1) for plan in plans], 1)
        assert torch.equal(joined.position_ids(), whole)
        assert torch.equal(joined.decode(9), torch.cat([plan.decode(9) for plan in plans], 1))
        computed = [int(n) for n in joined.row_bounds.diff() // 2]
        scheduled = [7] * joined.num_rows
        want = [
            plan.slice(n, n + 7)[:, row]
            for plan, first in zip(plans, (0, plans[0].num_rows), strict=True)
            for row, n in enumerate(computed[first : first + plan.num_rows])
        ]
        # Entries are searched for, or spread over the tokens.
        for spread_from in (2**13, 1):
            monkeypatch.setattr(table, "SPREAD_FROM", spread_from)
            assert torch.equal(joined.step(computed, scheduled), torch.cat(want, 1))

    check()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_of_a_capacity_nothing_is_read_and_each_token_is_an_entry(dtype, device):
    positions = (torch.tensor([[0, 2, 5, 7], [1, 1, 9, 3]]) / 2).to(dtype)
    kept = torch.tensor([True, False, False, True])
    plan = LinePlan(
        rows=torch.zeros((1, 5), dtype=torch.int64, device=device),
        entries=entries_of_tokens(positions.to(device), kept.to(device), torch.int32),
        num_tokens=4,
        seq_len=None,
        dtype=dtype,
        padding_value=1,
        family="",
        generated=torch.empty((3, 0), dtype=torch.int64, device=device),
    )
    assert plan.entries.shape == (4, 6)
    expanded = plan.position_ids()
    assert (expanded.shape, expanded.dtype) == ((2, 4), dtype)
    if device == "cpu":
        assert torch.equal(expanded, positions)
        assert plan._masked_tokens().tolist() == [0, 1, 1, 0]


@each_family
def test_an_unchecked_plan_on_a_cpu_is_that_of_a_checked_one(prompts):
    @at_most(10)
    @given(prompts)
    def check(prompt):
        plan, unchecked = (
            plan_rope_index(**arguments_of(prompt), validate=validate) for validate in (True, False)
        )
        assert torch.equal(plan.entries, unchecked.entries)

    check()


def test_a_frame_is_an_entry():
    spec = OWN_SPECS["isaac"]
    prompt = Prompt.from_symbols(spec, ["t" * 9 + "I" * 16 + "t" * 9], image_grid_thw=[(1, 8, 8)])
    plan = plan_rope_index(**arguments_of(prompt))
    assert len(plan.entries) == 3
    assert plan.nbytes == 28 * 3 + 40


@pytest.mark.parametrize("delta_length", ["padded", "valid"])
def test_decoding_goes_on_behind_masked_tokens_whatever_the_delta_is_measured_by(delta_length):
    spec = omni_spec_of("qwen2_5_omni", "transformers", 13)
    spec = replace(spec, delta_length=delta_length)
    ids, mask = torch.zeros((1, 4), dtype=torch.int64), torch.tensor([[0, 1, 1, 1]])
    plan = plan_rope_index(ids, spec, attention_mask=mask)
    assert plan.rope_deltas.tolist() == [[-1 if delta_length == "padded" else 0]]
    assert plan.decode(2).tolist() == [[[3, 4]]] * 3


def test_without_tokens_there_is_no_line():
    for shape in ((2, 0), (0, 3), (0, 0)):
        ids = torch.zeros(shape, dtype=torch.int64)
        plan = plan_rope_index(ids, OWN_SPECS["hunyuan_vl of 4 axes"])
        assert plan.position_ids().shape == (4, *shape)
        assert plan.decode(2).tolist() == [[[0, 1]] * shape[0]] * 4
        assert plan.slice(1, 4).tolist() == [[[1, 2, 3]] * shape[0]] * 4


def test_sequences_in_rows():
    spec = OWN_SPECS["isaac"]
    ids = torch.tensor([[0, 7, 9, 9, 0, 0, 7, 9, 9, 0], [0] * 10])
    numbers = torch.tensor([[1] * 5 + [2] * 5, [1] * 7 + [0] * 3])
    grids = torch.tensor([[1, 2, 4]] * 2)
    position_ids, rope_deltas = get_rope_index(
        ids, spec, image_grid_thw=grids, sequence_ids=numbers
    )
    alone = [
        get_rope_index(ids[:1, :5], spec, image_grid_thw=grids[:1]),
        get_rope_index(ids[:1, 5:], spec, image_grid_thw=grids[1:]),
        get_rope_index(ids[1:, :7], spec),
    ]
    assert torch.equal(position_ids[:, 0], torch.cat([one[0][:, 0] for one in alone[:2]], 1))
    assert torch.equal(position_ids[:, 1, :7], alone[2][0][:, 0])
    assert not position_ids[:, 1, 7:].any()
    assert torch.equal(rope_deltas, torch.cat([one[1] for one in alone]))


def test_too_few_sequences_give_no_answer():
    ids, numbers = torch.zeros((1, 4), dtype=torch.int64), torch.tensor([[1, 1, 2, 2]])
    options = {"sequence_ids": numbers, "max_sequences": 1, "validate": False}
    assert_no_answer(get_rope_index(ids, OWN_SPECS["isaac"], **options))
    plan = plan_rope_index(ids, OWN_SPECS["isaac"], **options)
    assert int(plan.decode().max()) < 0
    assert plan.slice(0, 3).tolist() == [[[-1] * 3]] * 3


def test_fractions_are_written_to_no_buffer_of_integers():
    spec = omni_spec_of("qwen3_omni_moe", "transformers", 13)
    prompt = Prompt.from_symbols(
        spec, ["t<VV>t"], video_grid_thw=[[2, 2, 2]], second_per_grids=[0.1]
    )
    plan = plan_rope_index(**arguments_of(prompt))
    assert plan.dtype == torch.float32
    out = torch.empty((3, 6))
    positions = plan.step([0], [6], out=out)
    assert positions.data_ptr() == out.data_ptr()
    assert torch.equal(positions, prompt.expected()[0][:, 0])
    assert not torch.equal(positions, positions.trunc())
    with pytest.raises(TypeError, match=r"out must be torch\.float32, got torch\.int64"):
        plan.step([0], [6], out=out.long())


def test_refused():
    ids = torch.zeros((1, 3), dtype=torch.int64)
    plans = [
        plan_rope_index(ids, spec)
        for spec in (
            OWN_SPECS["hunyuan_vl of 3 axes"],
            OWN_SPECS["hunyuan_vl of 4 axes"],
            spec_of("qwen2_vl", "transformers"),
        )
    ]
    for other in plans[1:]:
        with pytest.raises(
            ValueError, match=r"plans must have one (family|number of columns), got"
        ):
            concatenate_plans([plans[0], other])
    with pytest.raises(ValueError, match=r"out must have shape \(4, at least 3\)"):
        plans[1].step([0], [3], out=torch.zeros((3, 3), dtype=torch.int64))
