"""The functions of lmms-engine, a trainer: one copy to the host, then a slice for each picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bench.answers import Answer, join, make_spec, prepare_loop, tensor_arguments, to_answer
from bench.prompts import Workload
from bench.provider import Provider
from bench.upstreams import hf_config
from bench.wheels import Wheel, load
from vecrope import Convention

_MODULE = "lmms_engine/models/common_ops/rope.py"
_FUNCTIONS = {"qwen2_5_vl": "qwen2_5_vl_rope_index", "qwen3_vl": "qwen3_vl_get_rope_index"}
_RULES: dict[str, Any] = {"padding_value": 1, "delta_length": "padded", "span_rule": "thw"}


def lmms_engine_provider(path: Path) -> Provider:
    """Return the functions of an lmms-engine wheel.

    They have the rules that transformers once had: masked tokens hold 1, deltas are measured
    against the padded length, and seconds are rounded down to whole ones.
    """
    import numpy as np

    wheel = Wheel(path, "lmms_engine")
    functions = load(wheel, _MODULE, *_FUNCTIONS.values(), np=np, torch=torch)

    def prepare(workload: Workload) -> Callable[[], Answer]:
        function = functions[_FUNCTIONS[workload.model_type]]
        model = SimpleNamespace(config=hf_config(workload.model_type))
        arguments = tensor_arguments(workload)
        return lambda: function(model, workload.input_ids, **arguments)

    return Provider(
        f"lmms-engine-{wheel.version}",
        wheel.version,
        "transformers",
        prepare,
        oracle=_answer,
        families=tuple(_FUNCTIONS),
    )


@cache
def _answer(workload: Workload, convention: Convention) -> Answer:
    """Return what the loop reference says by these rules."""
    if workload.sequences is not None:
        return join([_answer(sequence, convention) for sequence in workload.sequences])
    spec = replace(make_spec(workload, convention), **_RULES)
    workload = workload.to("cpu")
    if workload.second_per_grid_ts is not None:
        workload = replace(workload, second_per_grid_ts=workload.second_per_grid_ts.floor())
    return to_answer(prepare_loop(workload, spec)())
