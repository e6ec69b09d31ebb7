"""The providers that this repository holds: vecrope, the loop reference, dense positions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

import vecrope
from bench import steps
from bench.answers import (
    Answer,
    make_spec,
    prepare_loop,
    prepare_vecrope,
    tensor_arguments,
    to_answer,
    vecrope_answer,
)
from bench.mixed import FAMILIES
from bench.prompts import Workload
from bench.provider import Provider
from vecrope import Convention


def vecrope_provider() -> Provider:
    """Return vecrope as users call it: eager, values checked; for a step, its plan."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        if workload.step is not None:
            return steps.prepare_vecrope(workload, "sglang")
        return prepare_vecrope(workload, workload.convention or "sglang")

    return Provider(
        "vecrope",
        vecrope_version(),
        "sglang",
        prepare,
        follows=True,
        touching=True,
        packed="together",
        slow=False,
        steps=True,
        held_bytes=steps.vecrope_bytes,
    )


def vecrope_unchecked_provider() -> Provider:
    """Return vecrope without checks of values."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        if workload.step is not None:
            return steps.prepare_vecrope_unchecked(workload, "sglang")
        return prepare_vecrope(workload, workload.convention or "sglang", validate=False)

    return Provider(
        "vecrope-unchecked",
        vecrope_version(),
        "sglang",
        prepare,
        follows=True,
        touching=True,
        packed="together",
        slow=False,
        steps=True,
        held_bytes=steps.vecrope_bytes,
    )


def _positions_of_plan(num_tokens: int, spec: vecrope.MRopeSpec, **arguments: Any) -> Answer:
    plan = vecrope.plan_from_placeholders(num_tokens, spec, **arguments)
    return plan.position_ids(), plan.rope_deltas


def vecrope_plan_provider() -> Provider:
    """Return the plan that vecrope makes of placeholders, its positions written out in full."""
    return _told_placeholders("vecrope-plan", _positions_of_plan)


def vecrope_placeholders_provider() -> Provider:
    """Return vecrope told where the placeholders are, as vLLM's functions are."""
    return _told_placeholders("vecrope-placeholders", vecrope.get_rope_index_from_placeholders)


def _told_placeholders(name: str, function: Callable[..., Answer]) -> Provider:
    def prepare(workload: Workload) -> Callable[[], Answer]:
        runs = torch.tensor(workload.runs, dtype=torch.int64).view(-1, 3)
        starts, stops, kinds = runs.to(workload.input_ids.device).unbind(1)
        arguments = {
            name: value
            for name, value in tensor_arguments(workload).items()
            if name != "attention_mask"
        }
        spec = make_spec(workload, workload.convention or "vllm")
        num_tokens, lengths = workload.input_ids.shape[1], stops - starts
        return lambda: function(
            num_tokens, spec, offsets=starts, lengths=lengths, modalities=kinds, **arguments
        )

    def convert(answer: Answer) -> Answer:
        position_ids, rope_deltas = answer
        return position_ids[:, None], rope_deltas

    return Provider(
        name,
        vecrope_version(),
        "vllm",
        prepare,
        convert=convert,
        follows=True,
        touching=True,
        one_row_only=True,
        families=FAMILIES,
    )


def vecrope_concatenate_provider() -> Provider:
    """Return a step of requests whose plans are put together for it."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        return steps.prepare_vecrope_concatenate(workload, "sglang")

    return _step_provider("vecrope-concatenate", "sglang", prepare, steps.vecrope_bytes)


def vecrope_replace_provider() -> Provider:
    """Return a step of a held plan in which some requests leave and others come before it."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        return steps.prepare_vecrope_replace(workload, "sglang")

    return _step_provider("vecrope-replace", "sglang", prepare, steps.vecrope_bytes)


def dense_provider() -> Provider:
    """Return a step of requests whose positions are written out, as wide as the longest may be."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        return steps.prepare_dense(workload, "vllm")

    return _step_provider("dense", "vllm", prepare, steps.dense_bytes)


def _step_provider(
    name: str,
    convention: Convention,
    prepare: Callable[[Workload], Callable[[], Answer]],
    held_bytes: Callable[[Workload], int],
) -> Provider:
    return Provider(
        name,
        vecrope_version(),
        convention,
        prepare,
        prompts=False,
        steps=True,
        held_bytes=held_bytes,
    )


def vecrope_compiled_provider() -> Provider:
    """Return vecrope compiled with dynamic shapes, without checks."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        function = _compiled_function()
        return prepare_vecrope(workload, workload.convention or "sglang", function, validate=False)

    return Provider(
        "vecrope-compiled",
        vecrope_version(),
        "sglang",
        prepare,
        follows=True,
        touching=True,
        packed="together",
        compiles=True,
    )


def vecrope_runner_provider() -> Provider:
    """Return the runner, called on the prompt where it is."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        runner = _make_runner(workload)
        arguments = tensor_arguments(workload)
        return lambda: runner(workload.input_ids, **arguments)

    return Provider(
        "vecrope-runner",
        vecrope_version(),
        "sglang",
        prepare,
        follows=True,
        touching=True,
        packed="no",
        gpu_only=True,
        slow=False,
        families=FAMILIES,
    )


def vecrope_runner_in_place_provider() -> Provider:
    """Return the runner where the prompt already stands in its buffers."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        runner = _make_runner(workload)
        num_rows, seq_len = workload.input_ids.shape
        inputs = runner.inputs(num_rows, seq_len)._asdict()
        given = {"input_ids": workload.input_ids, **tensor_arguments(workload)}
        for name, value in given.items():
            if value is not None:
                inputs[name].copy_(value)
        masked = workload.attention_mask is not None
        return lambda: runner.replay(num_rows, seq_len, masked=masked)

    return Provider(
        "vecrope-runner-in-place",
        vecrope_version(),
        "sglang",
        prepare,
        follows=True,
        touching=True,
        packed="no",
        gpu_only=True,
        slow=False,
        families=FAMILIES,
    )


def _make_runner(workload: Workload) -> vecrope.RopeIndexRunner:
    num_rows, seq_len = workload.input_ids.shape
    images, videos = (
        0 if grids is None else len(grids)
        for grids in (workload.image_grid_thw, workload.video_grid_thw)
    )
    runner = vecrope.RopeIndexRunner(
        make_spec(workload, workload.convention or "sglang"),
        max_rows=num_rows,
        max_tokens=seq_len,
        max_images=images,
        max_videos=videos,
        device=workload.input_ids.device,
    )
    runner.warm_up([(num_rows, seq_len)])
    return runner


def loop_provider() -> Provider:
    """Return the loop reference, from lists to lists."""

    def prepare(workload: Workload) -> Callable[[], Any]:
        return prepare_loop(workload, make_spec(workload, workload.convention or "sglang"))

    return Provider(
        "loop",
        vecrope_version(),
        "sglang",
        prepare,
        convert=to_answer,
        oracle=vecrope_answer,
        follows=True,
        touching=True,
        host_only=True,
    )


def vecrope_version() -> str:
    """Return the version of the installed vecrope."""
    return vecrope.__version__


@cache
def _compiled_function() -> Any:
    # What a process pays once, whatever it compiles, is no part of this function's compile time.
    torch.compile(lambda x: x + 1)(torch.ones(8))
    return torch.compile(vecrope.get_rope_index, fullgraph=True, dynamic=True)
