"""Requests of an engine: what is in them, and what their positions cost, with vecrope and without.

Costs are CPU time of the whole process, the engine's own function and vecrope's in turns: of one
thread, or of torch's own number of threads while another process spins on each core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from bench.busy import busy_cores, cores
from bench.prompts import Layout, Row
from bench.wheels import Wheel
from vecrope import Convention, MRopeSpec

SIZES = (300, 1000, 4000, 16000)
PICTURES = (1, 2, 8, 20, 32)
# What a request may cost more than in the engine as it is.
SLACK, SLACK_US = 1.1, 15
# Calls of a function in a row where there are threads, and the time for these to come to rest.
_CALLS, _REST = 8, 0.01
_QWEN_MARKS = (151652, 151653)
# The marks of an image, and of a video.
_MARKS: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    "qwen2_vl": (_QWEN_MARKS, _QWEN_MARKS),
    "qwen2_5_vl": (_QWEN_MARKS, _QWEN_MARKS),
    "qwen3_vl": (_QWEN_MARKS, ()),
    "glm4v": ((151339, 151340), (151341, 151342)),
    "ernie4_5_vl_moe": ((101304, 101305), (101306, 101307)),
    "qwen2_5_omni": (_QWEN_MARKS, _QWEN_MARKS),
    "qwen3_omni_moe": (_QWEN_MARKS, _QWEN_MARKS),
}
Positions = Callable[[], Any]


class Engine(NamedTuple):
    """An engine whose requests are measured.

    Attributes:
        name: of the engine; in small letters, of its distribution and its convention.
        families: those that it is measured with.
        load: takes its wheel and a family, and returns what makes the calls of a request: with
            vecrope, and without.
    """

    name: str
    families: tuple[str, ...]
    load: Callable[[Wheel, str], Callable[[Row], tuple[Positions, Positions]]]


class Cost(NamedTuple):
    """The median CPU time of a request's positions, in microseconds."""

    model_type: str
    request: str
    tokens: int
    with_vecrope: float
    without: float

    @property
    def is_slower(self) -> bool:
        """Whether vecrope makes the request cost more than it may."""
        return self.with_vecrope > max(self.without * SLACK, self.without + SLACK_US)


def rows(model_type: str, size: int, convention: Convention) -> Iterator[tuple[str, Row]]:
    """Yield prompts of `size` tokens, about half of them placeholders, and what is in each."""
    spec = MRopeSpec.for_model(model_type, convention=convention)
    image_marks, video_marks = _MARKS[model_type]
    layout = Layout(spec, image_marks, video_marks, timestamp_first=model_type == "qwen3_vl")

    def row_of(count: int, add: Callable[[Row], None]) -> Row:
        row = Row(layout)
        for _ in range(count):
            row.text(4)
            add(row)
        row.text(max(4, size - len(row)))
        return row

    yield "text", row_of(0, lambda _: None)
    for count in PICTURES:
        side = max(1, _side(size // 2 // count))
        name = f"{count} picture{'s' * (count > 1)}"
        yield name, row_of(count, lambda row, side=side: row.image(2 * side, 2 * side + 2))  # type: ignore[misc]
    shapes = ((1, 4), (1, 16), (1, 64)) if spec.separate_frames else ((1, 4), (1, 16), (8, 4))
    for count, frames in shapes:
        # Beside half of the tokens each frame has marks and a timestamp, each video some text.
        side = _side(min(size // 2, size - 12 * count * (frames + 1)) // count // frames)
        if side == 0:
            continue
        patches = frames * spec.temporal_merge_size, 2 * side, 2 * side + 2
        name = f"{count} video{'s' * (count > 1)} of {frames} frames"
        yield name, row_of(count, lambda row, patches=patches: row.video(*patches, 0.5))  # type: ignore[misc]


def measure(
    engine: Engine, wheel: Wheel, families: Sequence[str], sizes: Sequence[int], repeats: int
) -> Iterator[Cost]:
    """Yield what each request of each family costs, after a comparison of the answers."""
    for model_type in families:
        calls_of = engine.load(wheel, model_type)
        for size in sizes:
            for request, row in rows(model_type, size, engine.name.lower()):  # type: ignore[arg-type]
                calls = calls_of(row)
                check_equal(*calls)
                yield Cost(model_type, request, len(row), *cpu_times(*calls, repeats))


def check_equal(ours: Positions, own: Positions) -> None:
    """Check that two calls have the same positions and delta.

    Raises:
        ValueError: if they have not.
    """
    (positions, delta), (expected, expected_delta) = ours(), own()
    pairs = (positions, expected), (torch.as_tensor(delta), torch.as_tensor(expected_delta))
    for name, (found, wanted) in zip(("positions", "deltas"), pairs, strict=True):
        if found.dtype != wanted.dtype or not torch.equal(found, wanted):
            raise ValueError(f"{name} differ: the engine has {wanted}, vecrope {found}")


def cpu_times(ours: Positions, own: Positions, repeats: int) -> tuple[float, float]:
    """Return the median CPU time of either, in microseconds."""
    alone = torch.get_num_threads() == 1
    calls, rest = (1, 0.0) if alone else (_CALLS, _REST)
    pairs: list[tuple[Positions, list[float]]] = [(ours, []), (own, [])]
    for _ in range(repeats):
        # In turns: the second of a pair finds the caches warm.
        pairs.reverse()
        for function, taken in pairs:
            start = time.process_time()
            for _ in range(calls):
                function()
            if rest:
                # Threads spin for a while after their work, which the function pays for.
                time.sleep(rest)
            taken.append(1e6 * (time.process_time() - start) / calls)
    if repeats % 2:
        pairs.reverse()
    return median(pairs[0][1]), median(pairs[1][1])


def main(engine: Engine, description: str | None, argv: Sequence[str] | None = None) -> int:
    """Print a line for each request; return 1 if vecrope makes any slower, else 0."""
    distribution = engine.name.lower()
    prog = f"python -m bench.{distribution}_requests"
    parser = argparse.ArgumentParser(prog=prog, description=description)
    add = parser.add_argument
    add(f"--{distribution}", dest="wheel", type=Path, required=True, metavar="WHEEL")
    add("--family", nargs="+", choices=engine.families, default=engine.families)
    add("--size", nargs="+", type=int, default=SIZES, help="tokens of a prompt")
    add("--repeats", type=int, default=60)
    add("--busy", action="store_true", help="torch's own number of threads beside busy cores")
    options = parser.parse_args(argv)
    wheel = Wheel(options.wheel, distribution)

    threads = torch.get_num_threads()
    used = threads if options.busy else 1
    busy = busy_cores(len(cores()), 24 * 3600) if options.busy else nullcontext()
    print(f"{engine.name} {wheel.version}; CPU microseconds a request, {used} threads\n")
    print(f"{'family':16}{'request':24}{'tokens':>8}{'vecrope':>9}{engine.name:>9}{'ratio':>7}")
    slower = 0
    try:
        with busy:
            torch.set_num_threads(used)
            for cost in measure(engine, wheel, options.family, options.size, options.repeats):
                print(
                    f"{cost.model_type:16}{cost.request:24}{cost.tokens:8}"
                    f"{cost.with_vecrope:9.0f}{cost.without:9.0f}"
                    f"{cost.with_vecrope / cost.without:7.2f}{'  slower' * cost.is_slower}",
                    flush=True,
                )
                slower += cost.is_slower
    finally:
        torch.set_num_threads(threads)
    return int(slower > 0)


def _side(area: int) -> int:
    """Return the height of something a token wider than high that has no more tokens."""
    return max(0, int((max(0, area) + 0.25) ** 0.5 - 0.5))
