"""Check answers, then measure them: wall time, device time, compile time and memory."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.answers import Answer
from bench.busy import busy_cores
from bench.config import Config, Environment, Measurement, Result, Status
from bench.provider import Provider
from bench.providers import vecrope_version
from bench.workloads import make_workload

_WARM_UP = 2
# A machine is faster at one time than at another: the providers of a point take turns.
_ROUNDS = 5
_MAX_REPEATS = 100_000
# For how long cores are kept busy at most, beyond some times what the repeats should take.
_BUSY_S = 60


@dataclass
class _Point:
    """What is known of a provider at a point, while it is measured."""

    provider: Provider
    status: Status = "ok"
    error: str = ""
    call: Callable[[], Any] | None = None
    compile_s: float | None = None
    wall_us: list[float] = field(default_factory=list)
    device_us: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    held_bytes: int | None = None

    def fail(self, exception: Exception) -> None:
        """Note what went wrong, if nothing has before."""
        if self.status == "ok":
            text = " ".join(str(exception).split())
            self.status, self.error = "error", f"{type(exception).__name__}: {text}"[:300]

    def measurement(self) -> Measurement:
        if self.status != "ok":
            return Measurement()
        p20, _, _, p80 = statistics.quantiles(self.wall_us, n=5, method="inclusive")
        return Measurement(
            median_us=statistics.median(self.wall_us),
            p20_us=p20,
            p80_us=p80,
            device_us=statistics.median(self.device_us) if self.device_us else None,
            compile_s=self.compile_s,
            peak_bytes=self.peak_bytes,
            held_bytes=self.held_bytes,
            repeats=len(self.wall_us),
        )


def run_point(
    config: Config, providers: Sequence[Provider], environment: Environment
) -> list[Result]:
    """Return a point's rows; whatever goes wrong there becomes a row's status and error."""
    workload = make_workload(config.workload, config.seq_len, config.device)
    points = [_Point(provider) for provider in providers]
    _for_each(points, _check, config)
    gc.collect()  # not while times are measured, nor in every round: it takes half a second
    try:
        with busy_cores(config.busy, _BUSY_S + 4 * config.seconds * len(points)):
            for _ in range(_ROUNDS):
                _for_each(points, _measure_time, config)
    except (RuntimeError, OSError) as exception:
        for point in points:
            point.fail(exception)
    _for_each(points, _measure_memory, config)
    batch, seq_len = workload.input_ids.shape
    if workload.sequences is not None:
        batch = len(workload.sequences)
    return [
        Result(
            workload=config.workload,
            T=seq_len,
            B=batch,
            provider=point.provider.name,
            convention=point.provider.convention_for(workload),
            provider_version=point.provider.version,
            status=point.status,
            error=point.error,
            **asdict(point.measurement()),
            busy=config.busy,
            **asdict(environment),
        )
        for point in points
    ]


def _for_each(
    points: Sequence[_Point], step: Callable[[_Point, Config], None], config: Config
) -> None:
    """Take a step with each point that is well, and note what goes wrong."""
    for point in points:
        if point.status != "ok":
            continue
        try:
            step(point, config)
        except Exception as exception:
            point.fail(exception)


def _check(point: _Point, config: Config) -> None:
    """Prepare the call that is timed and weighed, and compare what it returns."""
    provider = point.provider
    workload = make_workload(config.workload, config.seq_len, config.device)
    reason = provider.why_not(workload)
    if reason:
        point.status, point.error = "not applicable", reason
        return
    point.call = provider.call_for(workload)
    graphs = _num_compiled_graphs() if provider.compiles else 0
    begin = time.perf_counter()
    answer = point.call()
    _wait(config)
    if provider.compiles and _num_compiled_graphs() > graphs:
        point.compile_s = time.perf_counter() - begin
    expected = provider.oracle(workload, provider.convention_for(workload))
    point.error = difference(provider.answer_of(workload, answer), expected)
    if point.error:
        point.status = "unequal"


def _measure_time(point: _Point, config: Config) -> None:
    assert point.call is not None
    if len(point.wall_us) >= config.min_repeats and sum(point.wall_us) > 1e6 * config.seconds:
        return
    wall_us, device_us = measure_time(
        point.call,
        replace(
            config,
            seconds=config.seconds / _ROUNDS,
            min_repeats=-(-config.min_repeats // _ROUNDS),
        ),
    )
    point.wall_us += wall_us
    point.device_us += device_us


def _measure_memory(point: _Point, config: Config) -> None:
    assert point.call is not None
    if not point.provider.host_only:
        point.peak_bytes = measure_memory(point.call, config)
    workload = make_workload(config.workload, config.seq_len, config.device)
    if workload.step is not None and point.provider.held_bytes is not None:
        point.held_bytes = point.provider.held_bytes(workload)


def difference(answer: Answer, expected: Answer) -> str:
    """Say where an answer first differs from what is expected; empty where it does not.

    The dtype of `rope_deltas` is left to the provider, everything else is compared.
    """
    names = ("position_ids", "rope_deltas")[: len(expected)]
    for name, got, want in zip(names, answer, expected, strict=True):
        if got.shape != want.shape:
            return f"{name} must have shape {tuple(want.shape)}, got {tuple(got.shape)}"
        if name == "position_ids" and got.dtype != want.dtype:
            return f"{name} must be {want.dtype}, got {got.dtype}"
        wrong: Tensor = got.cpu() != want
        if wrong.any():
            at = wrong.nonzero()[0].tolist()
            values = f"expected {want[tuple(at)].item()}, got {got[tuple(at)].item()}"
            return f"{name}{at}: {values}; {int(wrong.sum())} of {wrong.numel()} differ"
    return ""


def measure_time(call: Callable[[], Any], config: Config) -> tuple[list[float], list[float]]:
    """Return the wall time and, on a GPU, the device time of each repeat, in microseconds."""
    on_gpu = config.device == "cuda"
    wall_us: list[float] = []
    events = []
    for _ in range(_WARM_UP):
        begin = time.perf_counter()
        call()
        _wait(config)
        if time.perf_counter() - begin > config.seconds:  # it takes more than a warm-up makes out
            break
    gc.disable()
    try:
        deadline = time.perf_counter() + config.seconds
        while len(wall_us) < config.min_repeats or (
            time.perf_counter() < deadline and len(wall_us) < _MAX_REPEATS
        ):
            if on_gpu:
                events.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
                events[-1][0].record()
            begin = time.perf_counter_ns()
            answer = call()
            if on_gpu:
                events[-1][1].record()
                torch.cuda.synchronize()
            wall_us.append((time.perf_counter_ns() - begin) / 1000)
            del answer
    finally:
        gc.enable()
    return wall_us, [1000 * start.elapsed_time(stop) for start, stop in events]


def measure_memory(call: Callable[[], Any], config: Config) -> int:
    """Return the most bytes of tensors that a call adds to those that stood before it."""
    if config.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # torch counts no peak on a CPU; its profiler's trace has every allocation and release. Errors
    # apart, the profiler is not to write into the progress.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with warnings.catch_warnings():
        # Of torch 2.11, on events of several cycles; to keep them, as it asks for, takes minutes.
        warnings.filterwarnings("ignore", "Warning: Profiler clears events")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            answer = call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))
    del answer
    events = [event for event in trace["traceEvents"] if event.get("name") == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event["args"]["Ev Idx"]):
        current += event["args"]["Bytes"]
        peak = max(peak, current)
    return peak


def describe_environment(device: str, threads: int) -> Environment:
    """Return what all rows of a run on this device have in common."""
    return Environment(
        device=torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        threads=threads,
        vecrope=vecrope_version(),
        commit=_commit(),
        torch=torch.__version__,
        python=platform.python_version(),
        date=datetime.now(timezone.utc).date().isoformat(),
    )


def _wait(config: Config) -> None:
    if config.device == "cuda":
        torch.cuda.synchronize()


def _num_compiled_graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
