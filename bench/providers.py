"""What computes the positions: the providers that this repository holds, and what one is.

A provider's `prepare` does, outside the clock, what its caller would have done long before (the
upstream's configuration object, lists where it wants lists), and returns the call to time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

import vecrope
from bench import omni, steps
from bench.prompts import MODEL_TYPE, Workload, runs_of
from vecrope import Convention
from vecrope.testing import reference
from vecrope.testing.rules import rules_of, seconds_of

# Positions and deltas of prompts, or the positions of a step alone.
Answer = tuple[Tensor, ...]

STEPS = ("step", "step-decode")


@cache
def loop_answer(workload: Workload, convention: Convention) -> Answer:
    """Return what the loop reference says, as tensors on the CPU."""
    if workload.step is not None:
        return steps.step_answer(workload, convention)
    return _to_answer(_prepare_loop(workload.to("cpu"), convention)())


@cache
def text_only_answer(workload: Workload, _convention: Convention) -> Answer:
    """Return the positions of as many text tokens."""
    batch, seq_len = workload.input_ids.shape
    position_ids = torch.arange(seq_len).expand(3, batch, seq_len)
    return position_ids, torch.zeros((batch, 1), dtype=torch.int64)


@cache
def vecrope_answer(workload: Workload, convention: Convention) -> Answer:
    """Return what vecrope says, eager and on the CPU: what the loop itself is held against."""
    return _prepare_vecrope(workload.to("cpu"), convention)()


@dataclass(frozen=True)
class Provider:
    """Something that computes the positions of a workload.

    Attributes:
        name: as in the rows, with the version where it is an upstream's.
        version: of the distribution that its code comes from.
        convention: the upstream whose rules it follows. Of two upstreams that agree on a workload
            either may be named: vLLM knows no padding, and is held to SGLang's rules.
        prepare: makes the call to time, given a workload on the device.
        convert: makes `(position_ids, rope_deltas)` of what that call returns, outside the clock.
        oracle: makes the answer that it must equal, given the workload and the convention.
        compiles: whether the first call compiles.
        host_only: whether it computes on the host, wherever its input is.
        one_row_only: whether it knows no batch and no padding.
        only: the workloads that it is for, or none: all of them.
        families: the model types that it knows, or none: all of them.
        steps: whether it can number a step of requests.
        held_bytes: what it keeps of the requests of a workload between two steps.
        gpu_only: whether it needs a CUDA device.
        slow: whether to spare it batches of millions of tokens.
    """

    name: str
    version: str
    convention: Convention
    prepare: Callable[[Workload], Callable[[], Any]]
    convert: Callable[[Any], Answer] = field(default=lambda answer: answer)
    oracle: Callable[[Workload, Convention], Answer] = loop_answer
    compiles: bool = False
    host_only: bool = False
    one_row_only: bool = False
    only: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    steps: bool = False
    held_bytes: Callable[[Workload], int] | None = None
    gpu_only: bool = False
    slow: bool = True

    def why_not(self, workload: Workload) -> str:
        """Say why this provider does not apply to a workload; empty if it does."""
        if self.only and workload.name not in self.only:
            return f"for {', '.join(self.only)} only"
        if workload.step is not None and not self.steps:
            return "numbers prompts, not steps"
        if self.families and workload.model_type not in self.families:
            return f"for {', '.join(self.families)} only"
        if self.one_row_only and (
            workload.attention_mask is not None or len(workload.input_ids) > 1
        ):
            return "takes one row without padding"
        if self.gpu_only and workload.input_ids.device.type != "cuda":
            return "needs a CUDA device; run it with --device cuda"
        if self.slow and workload.name == "long":
            return "takes seconds a call at this length"
        if self.host_only and workload.input_ids.device.type != "cpu":
            return "computes on the host; run it with --device cpu"
        return ""


def vecrope_provider() -> Provider:
    """Return vecrope as users call it: eager, values checked; for a step, its plan."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        if workload.step is not None:
            return steps.prepare_vecrope(workload, "sglang")
        return _prepare_vecrope(workload, "sglang")

    return Provider(
        "vecrope",
        vecrope_version(),
        "sglang",
        prepare,
        slow=False,
        steps=True,
        held_bytes=steps.vecrope_bytes,
    )


def vecrope_unchecked_provider() -> Provider:
    """Return vecrope without checks of values."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        if workload.step is not None:
            return steps.prepare_vecrope_unchecked(workload, "sglang")
        return _prepare_vecrope(workload, "sglang", validate=False)

    return Provider(
        "vecrope-unchecked",
        vecrope_version(),
        "sglang",
        prepare,
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
        runs = torch.tensor(runs_of(workload), dtype=torch.int64).view(-1, 3)
        starts, stops, kinds = runs.to(workload.input_ids.device).unbind(1)
        arguments = {
            name: value
            for name, value in tensor_arguments(workload).items()
            if name != "attention_mask"
        }
        spec = _spec(workload, "vllm")
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
        one_row_only=True,
        families=(MODEL_TYPE, "qwen2_5_vl", "qwen3_vl", "ernie4_5_vl_moe"),
    )


def vecrope_concatenate_provider() -> Provider:
    """Return a step of requests whose plans are put together for it."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        return steps.prepare_vecrope_concatenate(workload, "sglang")

    return _step_provider("vecrope-concatenate", "sglang", prepare, steps.vecrope_bytes)


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
        only=STEPS,
        steps=True,
        held_bytes=held_bytes,
    )


def vecrope_compiled_provider() -> Provider:
    """Return vecrope compiled with dynamic shapes, without checks."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        function = _compiled_function()
        return _prepare_vecrope(workload, "sglang", function, validate=False)

    return Provider("vecrope-compiled", vecrope_version(), "sglang", prepare, compiles=True)


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
        gpu_only=True,
        slow=False,
        families=(MODEL_TYPE,),
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
        gpu_only=True,
        slow=False,
        families=(MODEL_TYPE,),
    )


def _make_runner(workload: Workload) -> vecrope.RopeIndexRunner:
    num_rows, seq_len = workload.input_ids.shape
    images, videos = (
        0 if grids is None else len(grids)
        for grids in (workload.image_grid_thw, workload.video_grid_thw)
    )
    runner = vecrope.RopeIndexRunner(
        _spec(workload, "sglang"),
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
    return Provider(
        "loop",
        vecrope_version(),
        "sglang",
        lambda workload: _prepare_loop(workload, "sglang"),
        convert=_to_answer,
        oracle=vecrope_answer,
        host_only=True,
    )


def vecrope_version() -> str:
    """Return the version of the installed vecrope."""
    return metadata.version("vecrope")


def tensor_arguments(workload: Workload) -> dict[str, Tensor | None]:
    """Return the keyword arguments that the family's `get_rope_index` takes."""
    names = ["image_grid_thw", "video_grid_thw", "attention_mask"]
    names += [
        name
        for name in ("second_per_grid_ts", "audio_seqlens")
        if getattr(workload, name) is not None
    ]
    return {name: getattr(workload, name) for name in names}


def _spec(workload: Workload, convention: Convention) -> vecrope.MRopeSpec:
    return vecrope.MRopeSpec.for_model(workload.model_type, convention=convention)


def _prepare_vecrope(
    workload: Workload,
    convention: Convention,
    function: Any = vecrope.get_rope_index,
    **options: Any,
) -> Callable[[], Answer]:
    spec = _spec(workload, convention)
    arguments = {**tensor_arguments(workload), **options}
    return lambda: function(workload.input_ids, spec, **arguments)


@cache
def _compiled_function() -> Any:
    # What a process pays once, whatever it compiles, is no part of this function's compile time.
    torch.compile(lambda x: x + 1)(torch.ones(8))
    return torch.compile(vecrope.get_rope_index, fullgraph=True, dynamic=True)


def _prepare_loop(workload: Workload, convention: Convention) -> Callable[[], Any]:
    if workload.model_type == omni.MODEL_TYPE:
        return omni.prepare_loop(workload, convention)
    spec = _spec(workload, convention)
    arguments: dict[str, Any] = {
        name: value.tolist()
        for name, value in tensor_arguments(workload).items()
        if value is not None
    }
    arguments |= {**seconds_of(workload.second_per_grid_ts), **rules_of(spec)}
    if convention == "transformers":  # whose functions read nothing else
        arguments["mm_token_type_ids"] = workload.mm_token_type_ids.tolist()
    input_ids = workload.input_ids.tolist()
    return lambda: reference.get_rope_index(input_ids, **arguments)


def _to_answer(answer: tuple[Any, Any]) -> Answer:
    position_ids, rope_deltas = map(torch.as_tensor, answer)
    return position_ids, rope_deltas
