"""The plan of rows that hold several sequences each."""

from __future__ import annotations

from dataclasses import replace

from vecrope.plans.build import build_plan
from vecrope.plans.plan import RopeIndexPlan
from vecrope.prepare import prepare
from vecrope.sequences import Sequences, deltas_of_sequences
from vecrope.spec import MRopeSpec


def plan_sequences(
    sequences: Sequences,
    spec: MRopeSpec,
    seq_len: int,
    *,
    validate: bool,
    max_groups: int | None,
) -> RopeIndexPlan:
    """Return the plan whose rows are the sequences of rows of `seq_len` tokens."""
    inputs, invalid = sequences
    plan = build_plan(prepare(inputs, spec, validate, max_groups), spec, validate, max_groups)
    deltas = deltas_of_sequences(inputs, spec, plan.rope_deltas)
    plan = replace(plan, seq_len=seq_len, rope_deltas=deltas)
    return plan if invalid is None else plan.voided(invalid)
