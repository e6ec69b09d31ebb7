"""Answers to a workload: of the loop reference and of vecrope, each held against the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

import vecrope
from bench import omni, own, steps
from bench.prompts import Workload
from vecrope import Convention
from vecrope.testing import reference
from vecrope.testing.rules import rules_of, seconds_of

# Positions and deltas of prompts, or the positions of a step alone.
Answer = tuple[Tensor, ...]


@cache
def loop_answer(workload: Workload, convention: Convention) -> Answer:
    """Return what the loop reference says, as tensors on the CPU."""
    if workload.step is not None:
        requests = workload.step.requests
        return steps.step_answer(workload, [loop_answer(each, convention) for each in requests])
    if workload.sequences is not None:
        return join([loop_answer(sequence, convention) for sequence in workload.sequences])
    return to_answer(prepare_loop(workload.to("cpu"), make_spec(workload, convention))())


@cache
def text_only_answer(workload: Workload, _convention: Convention) -> Answer:
    """Return the positions of as many text tokens."""
    batch, seq_len = workload.input_ids.shape
    position_ids = torch.arange(seq_len).expand(3, batch, seq_len)
    return position_ids, torch.zeros((batch, 1), dtype=torch.int64)


@cache
def vecrope_answer(workload: Workload, convention: Convention) -> Answer:
    """Return what vecrope says, eager and on the CPU: what the loop itself is held against."""
    return prepare_vecrope(workload.to("cpu"), convention)()


def join(answers: Sequence[Answer]) -> Answer:
    """Return answers to prompts of one row as that to these packed: (3, N) and (S, 1)."""
    position_ids, rope_deltas = zip(*answers, strict=True)
    return torch.cat(position_ids, 2)[:, 0], torch.cat(rope_deltas)


def tensor_arguments(workload: Workload) -> dict[str, Tensor | None]:
    """Return the keyword arguments that the family's `get_rope_index` takes."""
    names = ["image_grid_thw", "video_grid_thw", "attention_mask"]
    names += [
        name
        for name in ("second_per_grid_ts", "audio_seqlens")
        if getattr(workload, name) is not None
    ]
    return {name: getattr(workload, name) for name in names}


def make_spec(workload: Workload, convention: Convention) -> vecrope.MRopeSpec:
    """Return the rules of a workload's family."""
    if workload.model_type in own.FAMILIES:
        return own.spec_of(workload.model_type, convention)
    return vecrope.MRopeSpec.for_model(workload.model_type, convention=convention)


def prepare_vecrope(
    workload: Workload,
    convention: Convention,
    function: Any = vecrope.get_rope_index,
    **options: Any,
) -> Callable[[], Answer]:
    """Return a call of `vecrope.get_rope_index`, or of what has its arguments."""
    spec = make_spec(workload, convention)
    if workload.model_type in own.FAMILIES:
        return own.prepare_vecrope(workload, spec, function, **options)
    arguments = {**tensor_arguments(workload), **options}
    if workload.use_audio_in_video:
        arguments["use_audio_in_video"] = True
    input_ids = workload.input_ids
    if workload.cu_seqlens is not None:
        input_ids, arguments["cu_seqlens"] = input_ids[0], workload.cu_seqlens
    return lambda: function(input_ids, spec, **arguments)


def prepare_loop(workload: Workload, spec: vecrope.MRopeSpec) -> Callable[[], Any]:
    """Return a call of the loop reference, by these rules."""
    if workload.model_type in omni.MODEL_TYPES:
        return omni.prepare_loop(workload, spec.convention)
    if workload.model_type in own.FAMILIES:
        return own.prepare_loop(workload, spec)
    arguments: dict[str, Any] = {
        name: value.tolist()
        for name, value in tensor_arguments(workload).items()
        if value is not None
    }
    arguments |= {**seconds_of(workload.second_per_grid_ts), **rules_of(spec)}
    if spec.convention == "transformers":  # whose functions read nothing else
        arguments["mm_token_type_ids"] = workload.mm_token_type_ids.tolist()
    input_ids = workload.input_ids.tolist()
    return lambda: reference.get_rope_index(input_ids, **arguments)


def to_answer(answer: tuple[Any, Any]) -> Answer:
    """Return positions and deltas as tensors."""
    position_ids, rope_deltas = map(torch.as_tensor, answer)
    return position_ids, rope_deltas
