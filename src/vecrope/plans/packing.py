"""The plan of rows that hold several sequences each."""

from __future__ import annotations

from dataclasses import replace

from vecrope.plans.build import build_plan
from vecrope.plans.plan import RopeIndexPlan
from vecrope.prepare import prepare
from vecrope.sequences import Sequences


def plan_sequences(
    sequences: Sequences, seq_len: int, *, validate: bool, max_groups: int | None
) -> RopeIndexPlan:
    """Return the plan whose rows are the sequences of rows of `seq_len` tokens."""
    inputs, spec, invalid = sequences
    plan = build_plan(prepare(inputs, spec, validate, max_groups), spec, validate, max_groups)
    plan = replace(plan, seq_len=seq_len)
    return plan if invalid is None else plan.voided(invalid)
