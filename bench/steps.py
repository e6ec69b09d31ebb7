"""Steps of a serving engine: 256 requests whose prompts are known, and what each is to number.

A provider keeps something of each request from one step to the next, made outside the clock: plans,
or positions written out. The call to time returns the positions of one step, (3, tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import vecrope
from bench.prompts import Workload
from vecrope import Convention, RopeIndexPlan

Step = Callable[[], tuple[Tensor]]


def step_answer(workload: Workload, prompts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor]:
    """Return the positions and deltas of the prompts, one row each, cut and carried on."""
    assert workload.step is not None
    columns = []
    for (positions, delta), computed, scheduled in zip(
        prompts, workload.step.computed, workload.step.scheduled, strict=True
    ):
        index = torch.arange(computed, computed + scheduled)
        inside = index[index < positions.shape[2]]
        behind = index[len(inside) :].expand(3, -1) + delta.view(())
        columns += [positions[:, 0, inside], behind.to(positions.dtype)]
    return (torch.cat(columns, 1),)


def prepare_vecrope(workload: Workload, convention: Convention, **options: Any) -> Step:
    """Return a step of the plan of all requests."""
    plan, numbers = _plan(workload, convention), _numbers(workload)
    return lambda: (plan.step(*numbers, **options),)


def prepare_vecrope_unchecked(workload: Workload, convention: Convention) -> Step:
    """Return the same, of values that are not checked and of a known number of tokens."""
    assert workload.step is not None
    total = sum(workload.step.scheduled)
    return prepare_vecrope(workload, convention, validate=False, num_tokens=total)


def prepare_vecrope_concatenate(workload: Workload, convention: Convention) -> Step:
    """Return a step of plans that are put together for it."""
    plans, numbers = _plans(workload, convention), _numbers(workload)
    return lambda: (vecrope.concatenate_plans(plans).step(*numbers),)


def prepare_vecrope_replace(workload: Workload, convention: Convention) -> Step:
    """Return a step before which 8 requests of the held plan leave and 8 come in their places."""
    plans, numbers = _plans(workload, convention), _numbers(workload)
    # One in 32: those that come are in their prefill, if any request is.
    places = [*range(0, len(plans), 32)]
    coming = [plans[place] for place in places]
    leaving = plans[1 : len(places) + 1]
    held = _plan(workload, convention).replace(places, vecrope.concatenate_plans(leaving))

    def step() -> tuple[Tensor]:
        return (held.replace(places, vecrope.concatenate_plans(coming)).step(*numbers),)

    return step


def vecrope_bytes(workload: Workload) -> int:
    """Return the bytes of the plan of all requests."""
    return _plan(workload, "sglang").nbytes


def prepare_dense(workload: Workload, convention: Convention) -> Step:
    """Return a step out of positions that are written out, as (B, 3, T) int32."""
    table, following = _dense(workload, convention)
    computed, scheduled = _numbers(workload)
    lengths = _lengths(workload)
    rows = torch.arange(len(lengths), device=table.device)

    def step() -> tuple[Tensor]:
        total = int(scheduled.sum())
        row = rows.repeat_interleave(scheduled, output_size=total)
        first = (computed - scheduled.cumsum(0) + scheduled)[row]
        index = first + torch.arange(total, device=row.device)
        beyond = index - lengths[row]
        positions = table[row, :, index.clamp(max=table.shape[2] - 1)].t()
        return (torch.where(beyond < 0, positions, following[row] + beyond),)

    return step


def dense_bytes(workload: Workload) -> int:
    """Return the bytes of these positions, as vLLM's runner holds them."""
    table, _ = _dense(workload, "vllm")
    return table.nbytes


def prepare_sglang(functions: dict[str, Any], workload: Workload) -> Step:
    """Return SGLang's step: of a batch that extends, or of one that decodes only."""
    assert workload.step is not None
    computed, scheduled = workload.step.computed, workload.step.scheduled
    ends = [begin + count for begin, count in zip(computed, scheduled, strict=True)]
    device = workload.input_ids.device
    seq_lens = torch.tensor(ends, device="cpu")
    forward = SimpleNamespace(seq_lens_cpu=seq_lens, seq_lens=seq_lens.to(device))
    forward._expand_mrope_from_input = lambda mm_input, seq_len: functions[
        "_expand_mrope_from_input"
    ](forward, mm_input, seq_len)
    runner = SimpleNamespace(device=device)
    lengths = _lengths(workload).tolist()
    batch = SimpleNamespace(
        multimodal_inputs=_mm_inputs(workload),
        extend_lens=scheduled,
        prefix_lens=computed,
        reqs=[SimpleNamespace(session=None)] * len(computed),
    )
    decodes = all(begin >= length for begin, length in zip(computed, lengths, strict=True))
    function = functions[f"_compute_mrope_positions_{'decode' if decodes else 'extend'}"]

    def step() -> tuple[Tensor]:
        function(forward, runner, batch)
        return (forward.mrope_positions,)

    return step


def sglang_bytes(workload: Workload) -> int:
    """Return the bytes of the positions and deltas that SGLang keeps of each request."""
    return sum(
        mm_input.mrope_positions.nbytes + mm_input.mrope_position_delta.nbytes
        for mm_input in _mm_inputs(workload)
    )


def _mm_inputs(workload: Workload) -> list[SimpleNamespace]:
    # SGLang keeps them on the host.
    return [
        SimpleNamespace(
            mrope_positions=plan.position_ids().cpu(),
            mrope_position_delta=plan.rope_deltas.cpu(),
            mrope_position_delta_repeated_cache=None,
        )
        for plan in _plans(workload, "sglang")
    ]


def _numbers(workload: Workload) -> tuple[Tensor, Tensor]:
    assert workload.step is not None
    device = workload.input_ids.device
    _, computed, scheduled = workload.step
    return torch.tensor(computed, device=device), torch.tensor(scheduled, device=device)


def _lengths(workload: Workload) -> Tensor:
    assert workload.attention_mask is not None
    return workload.attention_mask.sum(1)


@cache
def _plans(workload: Workload, convention: Convention) -> list[RopeIndexPlan]:
    """Return a plan of each request, as packed sequences of one."""
    assert workload.step is not None
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "audio_seqlens")
    plans = []
    for request in workload.step.requests:
        ids = request.input_ids[0]
        given = {name: getattr(request, name) for name in names}
        plan = vecrope.plan_rope_index(
            ids.cpu(),
            vecrope.MRopeSpec.for_model(request.model_type, convention=convention),
            cu_seqlens=torch.tensor([0, ids.shape[0]]),
            **{name: value for name, value in given.items() if value is not None},
        )
        plans.append(plan.to(ids.device))
    return plans


def _plan(workload: Workload, convention: Convention) -> RopeIndexPlan:
    return vecrope.concatenate_plans(_plans(workload, convention))


@cache
def _dense(workload: Workload, convention: Convention) -> tuple[Tensor, Tensor]:
    batch, seq_len = workload.input_ids.shape
    table = workload.input_ids.new_zeros((batch, 3, seq_len), dtype=torch.int32)
    plans = _plans(workload, convention)
    for row, plan in zip(table, plans, strict=True):
        row[:, : plan.num_tokens] = plan.position_ids()
    return table, torch.cat([plan.next_positions for plan in plans])
