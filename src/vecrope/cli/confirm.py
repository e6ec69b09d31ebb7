"""The pipeline's answer next to the reference's: whether they agree, and how long each takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import thread_time
from typing import Any

import torch
from torch import Tensor

import vecrope
from vecrope.cli.prompt import CommandError, Prompt
from vecrope.cli.upstream import find_upstream
from vecrope.testing import reference
from vecrope.testing.matching import difference
from vecrope.testing.rules import rules_of, seconds_of

_LOOP = "the loop, plain Python over lists"


@dataclass(frozen=True)
class Timing:
    """The median CPU time of some calls, each on one thread: other processes do not change it."""

    seconds: float
    calls: int


@dataclass(frozen=True)
class Answer:
    """The library's answer, and what came of its comparison with the reference."""

    position_ids: Tensor  # (3, B, T)
    rope_deltas: Tensor  # (B, 1)
    disagreement: str | None
    library: Timing
    peer: Timing
    peer_name: str  # whose time that is: the upstream's, or the reference's


def confirm(prompt: Prompt) -> Answer:
    """Compute the positions by the pipeline and by the reference, compare, and time both.

    Raises:
        CommandError: if the library refuses the prompt.
    """
    tensors: dict[str, Any] = prompt.arguments()
    lists: dict[str, Any] = {
        name: tensor.tolist() for name, tensor in tensors.items() if tensor is not None
    }
    lists |= seconds_of(prompt.second_per_grid_ts)
    try:
        rules = rules_of(prompt.spec)
    except ValueError as error:
        raise CommandError(f"{prompt.title}: {error}") from error
    rows = prompt.input_ids.tolist()

    def library() -> tuple[Tensor, Tensor]:
        return vecrope.get_rope_index(prompt.input_ids, prompt.spec, **tensors)

    def loop() -> tuple[list[list[list[int]]], list[list[int]]]:
        return reference.get_rope_index(rows, **rules, **lists)

    try:
        position_ids, rope_deltas = library()
    except (ValueError, TypeError) as error:
        raise CommandError(f"{prompt.title}: {error}") from error
    try:
        expected = loop()
    except reference.Refusal as refusal:
        disagreement = f"the reference refuses the prompt: {refusal}"
        return Answer(position_ids, rope_deltas, disagreement, Timing(0, 0), Timing(0, 0), "")
    positions, deltas = map(torch.tensor, expected)
    found = difference("position_ids", positions, position_ids)
    found = found or difference("rope_deltas", deltas, rope_deltas)
    name: str = _LOOP
    peer: Callable[[], Any] = loop
    upstream = find_upstream(prompt)
    # An upstream of another release may number otherwise.
    if upstream is not None and torch.equal(upstream[1]()[0], position_ids):
        name, peer = upstream
    first_line = found and found.partition("\n")[0]
    return Answer(position_ids, rope_deltas, first_line, _time(library), _time(peer), name)


def _time(
    call: Callable[[], object], least: int = 3, most: int = 25, budget: float = 0.2
) -> Timing:
    """Measure the CPU time of calls of a function that has been called before, on one thread."""
    seconds: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while len(seconds) < least or (len(seconds) < most and sum(seconds) < budget):
            start = thread_time()
            call()
            seconds.append(thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return Timing(median(seconds), len(seconds))
