"""All that a GPU is needed for in one run of 8 minutes: `python -m bench.gpu --csv rows.csv`.

Correctness, launches, synchronisations, compilation, the kernels' time beside that of the memory,
and rows of the benchmark, each answer of which is first compared with the loop reference's. Most of
the time would go to Triton, which compiles a kernel in a second or two, for each family and kind of
arguments: correctness is seen in as many processes as there are cores, and what they compile the
others find in Triton's cache.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.answers import make_spec, prepare_vecrope, tensor_arguments
from bench.config import Config, ResultWriter
from bench.mixed import FAMILIES, GROUPS
from bench.prompts import Workload
from bench.registry import WHEEL_NAMES, make_providers
from bench.runner import describe_environment, run_point
from bench.table import format_table
from bench.workloads import make_workload
from vecrope import concatenate_plans, get_rope_index, plan_rope_index
from vecrope.forms.select import fused_pipeline
from vecrope.inputs import Inputs

OWN_RULES = (
    *(f"mixed-own-{family}" for family in ("glm_image", "hunyuan_vl", "isaac")),
    *("mixed-own-bailing_moe_v3_vl", "mixed-own-minicpmv4_7"),
    *("mixed-omni", "mixed-omni-sound"),
)
KINDS = ("mixed", "mixed-batch", "mixed-packed")
# Of each kind the workloads whose rows are written, and their sizes.
WORKLOADS: dict[str, tuple[Sequence[str], tuple[int, ...]]] = {
    "mixed": (GROUPS["mixed"], (20, 245, 889, 4034, 16354, 32000, 130929)),
    "mixed-batch": (GROUPS["mixed-batch"], (1000, 4000)),
    "mixed-packed": (GROUPS["mixed-packed"], (1000, 4000)),
    "own-rules": (OWN_RULES, (1000, 16384)),
}
# To compile the rules of a family with one of its own takes a minute and more.
PROVIDERS = ("vecrope", "vecrope-unchecked", "transformers")
SHARED_RULE_PROVIDERS = ("vecrope-compiled", "vecrope-runner-in-place")
_MOST_PROCESSES = 16
# A provider that takes longer than its seconds is called so often.
_MIN_REPEATS = 3


def main() -> int:
    """Run the command line and return its exit code: 1 if a row failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--csv", type=Path, help="file for the rows")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each row")
    parser.add_argument("--kind", choices=WORKLOADS, action="append", help="of workloads")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="of the shared rule")
    parser.add_argument("--minutes", type=float, default=8, help="behind which no row is begun")
    parser.add_argument("--only", choices=("counts", "rows"), help="skip the rows, or all else")
    for name in WHEEL_NAMES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, help="wheel")
    options = parser.parse_args()
    stop = time.perf_counter() + 60 * options.minutes
    torch._dynamo.config.recompile_limit = 64  # a graph for each family and kind of workload
    with tempfile.TemporaryDirectory() as folder:
        # What is compiled is compiled in this run.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"
        os.environ["TRITON_CACHE_DIR"] = f"{folder}/triton"
        failed = correctness(options)
        if options.only != "rows":
            for section in (launches, plans, memory_floor, compilation):
                begin = time.perf_counter()
                try:
                    for line in section():
                        print(f"{section.__name__}: {line}", flush=True)
                except Exception:
                    traceback.print_exc()  # what else there is to measure is measured
                    failed = True
                print(f"{section.__name__}: {time.perf_counter() - begin:.0f} s", flush=True)
        if options.only != "counts":
            failed = rows(options, stop) or failed
    return int(failed)


def correctness(options: argparse.Namespace) -> bool:
    """Hold the kernels' answers against the loop's, in many processes; say whether any failed."""
    begin = time.perf_counter()
    names: dict[str, list[int]] = {}
    for kind, name, size in _points(options):
        if kind != "own-rules":
            names.setdefault(name, []).append(size)
    tasks: list[Callable[[], str]] = [partial(_make_plans, family) for family in FAMILIES]
    for provider in ("vecrope-runner-in-place", *PROVIDERS[:2]):
        tasks += [partial(_check, name, sizes, provider) for name, sizes in names.items()]
    count = min(_MOST_PROCESSES, len(os.sched_getaffinity(0)))
    failed = False
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(task) for task in tasks]):
            error = done.exception()
            failed = failed or error is not None
            print(f"correctness: {error or done.result()}", flush=True)
    print(f"correctness: {time.perf_counter() - begin:.0f} s", flush=True)
    return failed


def _check(name: str, sizes: Sequence[int], provider: str) -> str:
    """Hold a provider's answers to a workload against the loop's, and say how long it took."""
    begin = time.perf_counter()
    environment = describe_environment("cuda", 1)
    for size in sizes:
        config = Config(name, size, "cuda", seconds=0, min_repeats=2)
        (result,) = run_point(config, make_providers([provider], {}), environment)
        if result.failed:
            raise RuntimeError(f"{name}, {size}, {provider}: {result.status}: {result.error}")
    took = time.perf_counter() - begin
    return f"{name}, {provider}: {result.status} at {len(sizes)} sizes, {took:.0f} s"


def _make_plans(family: str) -> str:
    """Call what `plans` and `compilation` will call, to compile it, and say how long it took."""
    begin = time.perf_counter()
    for call in _plan_calls(family).values():
        call()
    for validate in (False, True):
        get_rope_index(**next(_requests(family, 1)), validate=validate)
    return f"{family}, plans made, {time.perf_counter() - begin:.0f} s"


def rows(options: argparse.Namespace, stop: float) -> bool:
    """Measure the rows, none of which begins after `stop`, and say whether any failed or lacks."""
    wheels = {name: getattr(options, name) for name in WHEEL_NAMES}
    given = [name.replace("_", "-") for name, wheel in wheels.items() if wheel]
    if wheels["sglang"]:
        given.append("sglang-host")
    for_all = make_providers([*PROVIDERS, *given], wheels)
    for_shared_rule = make_providers([*PROVIDERS, *SHARED_RULE_PROVIDERS, *given], wheels)
    environment = describe_environment("cuda", torch.get_num_threads())
    failed = False
    begin = time.perf_counter()
    gc.freeze()  # the collection before each point has less to look at
    with (options.csv or Path("/dev/null")).open("w", encoding="utf-8") as file:
        writer = ResultWriter(file)
        for kind, name, size in _points(options):
            if time.perf_counter() > stop:
                print(f"no time is left for {name}, {size}", flush=True)
                failed = True
                continue
            config = Config(name, size, "cuda", seconds=options.seconds, min_repeats=_MIN_REPEATS)
            providers = for_all if kind == "own-rules" else for_shared_rule
            for result in run_point(config, providers, environment):
                writer.write(result)
                failed = failed or result.failed
                if result.status != "not applicable":
                    print(format_table([result]).splitlines()[-1], result.error, flush=True)
    print(f"rows: {time.perf_counter() - begin:.0f} s", flush=True)
    return failed


def _points(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Yield the kinds, names and sizes of the workloads whose rows are written."""
    for kind in options.kind or WORKLOADS:
        names, sizes = WORKLOADS[kind]
        for name in names:
            family = name.removeprefix(f"{kind}-")
            if not options.family or family in options.family or kind == "own-rules":
                yield from ((kind, name, size) for size in sizes)


def launches() -> Iterator[str]:
    """Count what one call launches, and how often it waits."""
    names = [f"{kind}-{family}" for family in FAMILIES for kind in KINDS]
    for name in (*names, *OWN_RULES):
        workload = make_workload(name, 1000, "cuda")
        for options in ({"validate": False}, {}):
            call = prepare_vecrope(workload, workload.convention or "transformers", **options)
            call()
            took = _microseconds(call, repeats=50)
            yield f"{name}, {options}: {_launched(call)}, waits {_waits(call)}, {took:.0f} us"


def plans() -> Iterator[str]:
    """Count what a plan launches when it is made, moved and read, by 256 requests, and time it."""
    for family in FAMILIES:
        for name, call in _plan_calls(family).items():
            call()
            took = _microseconds(call, repeats=50)
            yield f"{family}, {name}: {_launched(call)}, waits {_waits(call)}, {took:.0f} us"


def _plan_calls(family: str) -> dict[str, Callable[[], Any]]:
    workload = _workload("mixed-batch", family, 4000)
    spec, arguments = make_spec(workload, "transformers"), tensor_arguments(workload)
    options = {"validate": False, "max_groups": 4096}
    make = partial(plan_rope_index, workload.input_ids, spec, **arguments, **options)
    plan = make()
    requests = concatenate_plans([plan] * (256 // len(plan)))
    num_rows = len(requests)
    done = torch.arange(num_rows, device="cuda", dtype=torch.int32) * 17
    ones = torch.ones_like(done)
    return {
        "made": make,
        "expanded": plan.position_ids,
        "sharded": partial(plan.shard, 1, 4, "zigzag"),
        "sliced": partial(requests.slice, 100, 612),
        "decoded": partial(requests.decode, 4),
        "stepped": partial(requests.step, done, ones, num_tokens=num_rows, validate=False),
        "selected": partial(requests.select, [*range(0, num_rows, 2)]),
        "joined": partial(concatenate_plans, [plan] * 8),
    }


def compilation() -> Iterator[str]:
    """Compile the call, and count compilations over requests of random shapes."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compile(lambda x: x + 1)(torch.ones(8, device="cuda"))
    for family in FAMILIES:
        counter = CompileCounterWithBackend("inductor")
        function: Any = torch.compile(get_rope_index, fullgraph=True, dynamic=True, backend=counter)
        workload = _workload("mixed", family, 1000)
        prepare_vecrope(workload, "transformers", validate=False)()
        took = []
        for _ in range(2):
            torch._dynamo.reset()
            begin = time.perf_counter()
            prepare_vecrope(workload, "transformers", function)()
            torch.cuda.synchronize()
            took.append(time.perf_counter() - begin)
        # The first call has one row. What the requests have is seen once before they are counted.
        function(**next(_requests(family, 1)))
        before = counter.frame_count
        for request in _requests(family, 2000):
            function(**request)
        yield (
            f"{family}: first call {took[0]:.2f} s, {took[1]:.2f} s where Triton has compiled; "
            f"{counter.frame_count - before} graphs for 2,000 requests of random shapes"
        )
    workload = _workload("mixed", "qwen2_5_vl", 4000)
    for mode in (None, "reduce-overhead"):
        torch._dynamo.reset()
        function = torch.compile(get_rope_index, fullgraph=True, dynamic=True, mode=mode)
        for validate in (False, True):
            eager = prepare_vecrope(workload, "transformers", validate=validate)
            call = prepare_vecrope(workload, "transformers", function, validate=validate)
            for _ in range(5):
                call()
            took, plain = _microseconds(call), _microseconds(eager)
            yield (
                f"{mode}, validate={validate}: {took:.0f} us, not compiled {plain:.0f} us, "
                f"{_launched(call)}"
            )
    torch._dynamo.reset()
    spec, arguments = make_spec(workload, "transformers"), tensor_arguments(workload)

    def model(ids: torch.Tensor, numbered: bool) -> Any:
        options = {**arguments, "validate": False}
        return ids + 1, get_rope_index(ids, spec, **options) if numbered else None

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    calls = [partial(compiled, workload.input_ids, numbered) for numbered in (True, False)]
    for call in calls * 3:
        call()
    with_call, without = map(_microseconds, calls)
    yield f"a graph takes {with_call:.0f} us with the call, {without:.0f} us without it"


def memory_floor() -> Iterator[str]:
    """Set the kernels' time beside that of reading the ids once and writing the positions once."""
    bandwidth = _copy_bandwidth()
    yield f"a copy moves {bandwidth / 1e6:.2f} TB/s"
    pipeline = fused_pipeline()
    for family in FAMILIES:
        workload = _workload("mixed", family, 131072)
        spec = make_spec(workload, "transformers")
        for copies in (1, 64):
            inputs = _repeated(workload, copies)
            num_tokens = inputs.input_ids.numel()
            took = _replayed(partial(pipeline.launch, inputs, spec, validate=False))
            floor = 4 * 8 * num_tokens / bandwidth
            yield f"{family}, {num_tokens} tokens: {took:.1f} us, memory alone {floor:.1f} us"


def _copy_bandwidth() -> float:
    """Return the bytes read and written in a microsecond by a copy of 2 GiB."""
    source = torch.empty(2**28, dtype=torch.int64, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 8 / _replayed(partial(target.copy_, source))


def _repeated(workload: Workload, copies: int) -> Inputs:
    """Return a batch of so many rows of the same prompt."""
    arguments = tensor_arguments(workload)
    inputs = Inputs(workload.input_ids, **arguments)
    repeated = {
        name: value.repeat(copies, *(1 for _ in value.shape[1:]))
        for name, value in inputs._asdict().items()
        if isinstance(value, torch.Tensor)
    }
    return inputs._replace(**repeated)


def _requests(family: str, number: int) -> Iterator[dict[str, Any]]:
    """Yield the arguments of requests of random shapes by the recipe for one graph.

    It is a mask, two rows of either grid and more, of which those of zeros are none, and two rows
    of ids and more.
    """
    rng = random.Random(number)
    spec = make_spec(_workload("mixed", family, 1000), "transformers")
    merge, frames = spec.spatial_merge_size, spec.temporal_merge_size
    for _ in range(number):
        num_rows, num_images = rng.randint(2, 4), rng.randint(0, 4)
        num_clips = 0 if spec.video_token_id is None else rng.randint(0, 3)
        row = [spec.image_token_id, 9] * num_images + [spec.video_token_id, 9] * num_clips
        ids = torch.tensor([row + [9] * rng.randint(2, 99)] * num_rows, device="cuda")
        request = {"input_ids": ids, "spec": spec, "attention_mask": torch.ones_like(ids)}
        for name, grid, count in (
            ("image_grid_thw", (1, merge, merge), num_images),
            ("video_grid_thw", (frames, merge, merge), num_clips),
        ):
            grids = [grid] * count * num_rows + [(0, 0, 0)] * 2
            request[name] = torch.tensor(grids, device="cuda")
        yield request


def _workload(kind: str, family: str, size: int) -> Workload:
    return make_workload(f"{kind}-{family}", size, "cuda")


def _launched(call: Callable[[], Any]) -> str:
    """Return the number of kernels and copies that a call launches."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(), profile(activities=[ProfilerActivity.CUDA]) as trace:
        warnings.simplefilter("ignore")
        call()
        torch.cuda.synchronize()
    events = [event for event in trace.events() if event.device_type.name == "CUDA"]
    copies = sum(event.name.startswith("Mem") for event in events)
    return f"{len(events) - copies} kernels, {copies} copies"


def _waits(call: Callable[[], Any]) -> int:
    """Return how often a call waits for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(entry.message) for entry in caught)


def _microseconds(call: Callable[[], Any], repeats: int = 200) -> float:
    """Return the median wall time of a call until its answer is there."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        call()
        torch.cuda.synchronize()
        times.append((time.perf_counter_ns() - begin) / 1000)
    return statistics.median(times)


def _replayed(launch: Callable[[], Any], repeats: int = 20) -> float:
    """Return the device's microseconds for one replay of what `launch` launches."""
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            launch()
    graph.replay()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    stop.record()
    torch.cuda.synchronize()
    return 1000 * start.elapsed_time(stop) / repeats


if __name__ == "__main__":
    sys.exit(main())
