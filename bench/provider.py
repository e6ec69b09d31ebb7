"""What a provider is: something that computes the positions of a workload.

Its `prepare` does, outside the clock, what its caller would have done long before (the upstream's
configuration object, lists where it wants lists), and returns the call to time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.answers import Answer, join, loop_answer, make_spec
from bench.prompts import Workload
from vecrope import Convention


@dataclass(frozen=True)
class Provider:
    """Something that computes the positions of a workload.

    Attributes:
        name: as in the rows, with the version where it is an upstream's.
        version: of the distribution that its code comes from.
        convention: the upstream whose rules it follows. Of two upstreams that agree on a workload
            either may be named: vLLM knows no padding, and is held to SGLang's rules.
        follows: whether it follows the workload's convention instead, where that has one.
        prepare: makes the call to time, given a workload on the device.
        convert: makes `(position_ids, rope_deltas)` of what that call returns, outside the clock.
        oracle: makes the answer that it must equal, given the workload and the convention.
        compiles: whether the first call compiles.
        host_only: whether it computes on the host, wherever its input is.
        host_families: the model types that it numbers on the host alone.
        one_row_only: whether it knows no batch and no padding.
        one_row_families: the model types of which it knows neither.
        only: the workloads that it is for, or none: all of them.
        families: the model types that it knows, or none: all of them.
        touching: whether it takes pictures with nothing in between.
        audio_beside_sound: whether it takes audio next to clips with their sound.
        packed: whether it numbers packed sequences together, by `cu_seqlens`, or is called for each
            in turn, as collators do, or neither. What puts the answers together is not timed.
        steps: whether it can number a step of requests.
        whole_steps: whether it cuts the positions of a step to whole numbers.
        prompts: whether it can number prompts.
        held_bytes: what it keeps of the requests of a workload between two steps.
        gpu_only: whether it needs a CUDA device.
        slow: whether to spare it batches of millions of tokens.
    """

    name: str
    version: str
    convention: Convention
    prepare: Callable[[Workload], Callable[[], Any]]
    convert: Callable[[Any], Answer] = field(default=lambda answer: answer)
    follows: bool = False
    oracle: Callable[[Workload, Convention], Answer] = loop_answer
    compiles: bool = False
    host_only: bool = False
    host_families: tuple[str, ...] = ()
    one_row_only: bool = False
    one_row_families: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    touching: bool = False
    audio_beside_sound: bool = True
    packed: Literal["together", "in turn", "no"] = "in turn"
    steps: bool = False
    whole_steps: bool = False
    prompts: bool = True
    held_bytes: Callable[[Workload], int] | None = None
    gpu_only: bool = False
    slow: bool = True

    def why_not(self, workload: Workload) -> str:
        """Say why this provider does not apply to a workload; empty if it does."""
        if self.only and workload.name not in self.only:
            return f"for {', '.join(self.only)} only"
        if workload.step is not None and not self.steps:
            return "numbers prompts, not steps"
        has_fractions = workload.model_type == "qwen3_omni_moe"
        if workload.step is not None and self.whole_steps and has_fractions:
            return "cuts the positions of a step to whole numbers"
        if workload.step is None and not self.prompts:
            return "numbers steps, not prompts"
        if workload.sequences is not None and self.packed == "no":
            return "takes no packed sequences"
        if workload.touching and not self.touching:
            return "takes no pictures that touch"
        if workload.use_audio_in_video and not self.audio_beside_sound:
            return "takes no audio next to clips with sound"
        if self.families and workload.model_type not in self.families:
            return f"for {', '.join(self.families)} only"
        one_row_only = self.one_row_only or workload.model_type in self.one_row_families
        if one_row_only and (workload.attention_mask is not None or len(workload.input_ids) > 1):
            return "takes one row without padding"
        if self.gpu_only and workload.input_ids.device.type != "cuda":
            return "needs a CUDA device; run it with --device cuda"
        if self.slow and workload.name == "long":
            return "takes seconds a call at this length"
        host_only = self.host_only or workload.model_type in self.host_families
        if host_only and workload.input_ids.device.type != "cpu":
            return "computes on the host; run it with --device cpu"
        if workload.convention is not None and self._reads(workload) != _placeholders(
            workload, workload.convention
        ):
            return f"reads other placeholders than the prompts of {workload.convention} have"
        return ""

    def convention_for(self, workload: Workload) -> Convention:
        """Return the upstream whose rules it follows on a workload."""
        return (self.follows and workload.convention) or self.convention

    def call_for(self, workload: Workload) -> Callable[[], Any]:
        """Return the call to time: one, or one after the other for each packed sequence."""
        if not self._in_turn(workload):
            return self.prepare(workload)
        calls = [self.prepare(sequence) for sequence in workload.sequences or ()]
        return lambda: [call() for call in calls]

    def answer_of(self, workload: Workload, returned: Any) -> Answer:
        """Return what such a call returned as positions and deltas."""
        if self._in_turn(workload):
            return join([self.convert(answer) for answer in returned])
        return self.convert(returned)

    def _reads(self, workload: Workload) -> tuple[int | None, int | None]:
        return _placeholders(workload, self.convention_for(workload))

    def _in_turn(self, workload: Workload) -> bool:
        return workload.sequences is not None and self.packed == "in turn"


def _placeholders(workload: Workload, convention: Convention) -> tuple[int | None, int | None]:
    spec = make_spec(workload, convention)
    return spec.image_token_id, spec.video_token_id
