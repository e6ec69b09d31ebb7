import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from bench_support import BROKEN, ENVIRONMENT, quick

from bench import busy, runner
from bench.__main__ import main
from bench.busy import busy_cores, cores
from bench.config import read_results
from bench.providers import vecrope_provider
from bench.registry import BUSY_PROVIDERS

_PARENT = """
import os
from bench.busy import busy_cores
with busy_cores(1, 60) as processes:
    print(processes[0].pid, flush=True)
    os._exit(1)
"""


def ended(pid, seconds=5.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not is_running(pid):
            return True
        time.sleep(0.01)
    return False


def is_running(pid):
    """Tell whether a process runs: one that has ended may wait for its parent to ask."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs /proc")  # noqa: PTH112


def test_processes_run_within_the_context_and_end_with_it():
    with busy_cores(2, 30) as processes:
        assert [process.poll() for process in processes] == [None, None]
    assert all(process.returncode is not None for process in processes)


def test_processes_end_with_an_exception():
    with pytest.raises(KeyboardInterrupt), busy_cores(1, 30) as processes:
        raise KeyboardInterrupt
    assert processes[0].returncode is not None


def test_no_process_is_started_for_quiet_cores():
    with busy_cores(0, 30) as processes:
        assert processes == []


def test_process_that_ends_before_the_measurement_is_an_error():
    early = pytest.raises(RuntimeError, match="a process ended that was to keep its core busy")
    with early, busy_cores(1, 0.01) as processes:
        processes[0].wait(10)


@needs_proc
def test_process_ends_with_its_parent():
    command = [sys.executable, "-c", _PARENT]
    parent = subprocess.run(command, capture_output=True, text=True, check=False)
    assert parent.returncode == 1, parent.stderr
    assert ended(int(parent.stdout))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs the affinity of a process")
def test_each_process_keeps_to_a_core_of_its_own():
    available = cores()
    with busy_cores(len(available), 30) as processes:
        used = [os.sched_getaffinity(process.pid) for process in processes]
    assert used == [{core} for core in available]


def test_only_times_are_measured_beside_busy_cores(monkeypatch):
    running = []

    @contextmanager
    def spy(count, seconds):
        running.append((count, seconds > 0))
        yield []
        running.append("end")

    monkeypatch.setattr(runner, "busy_cores", spy)
    monkeypatch.setattr(runner, "_check", lambda *_: running.append("check"))
    monkeypatch.setattr(runner, "_measure_time", lambda *_: running.append("time"))
    monkeypatch.setattr(runner, "_measure_memory", lambda *_: running.append("memory"))
    monkeypatch.setattr(runner._Point, "measurement", lambda _: runner.Measurement())
    runner.run_point(quick(busy=3), [vecrope_provider()], ENVIRONMENT)
    assert running == ["check", (3, True), *["time"] * runner._ROUNDS, "end", "memory"]


def test_core_that_falls_quiet_is_an_error_row(monkeypatch):
    monkeypatch.setattr(busy, "_SPIN", "print('spinning')")
    monkeypatch.setattr(runner, "_measure_time", lambda *_: time.sleep(0.1))
    (row, broken) = runner.run_point(quick(busy=1), [vecrope_provider(), BROKEN], ENVIRONMENT)
    assert row.status == "error"
    assert row.error.startswith("RuntimeError: a process ended that was to keep its core busy")
    assert broken.error == "RuntimeError: no such kernel"


def test_busy_rows_stand_beside_quiet_ones_of_one_thread(tmp_path, capsys):
    out = tmp_path / "rows.csv"
    options = (
        "--busy --workload pictures-step-qwen3_vl --provider vecrope --threads 2 --seconds 0.001"
    )
    threads = torch.get_num_threads()
    assert main([*options.split(), "--csv", str(out)]) == 0
    assert torch.get_num_threads() == threads
    quiet, loud = read_results([out])
    assert (quiet.threads, quiet.busy) == (1, 0)
    assert (loud.threads, loud.busy) == (2, len(cores()))
    assert quiet.status == loud.status == "ok"
    printed = capsys.readouterr()
    header, _, first, second = printed.out.splitlines()
    assert header.split()[3:5] == ["threads", "busy"]
    assert header.endswith("÷ quiet")
    ratio = float(second.split()[-1].replace(",", ""))
    assert ratio == pytest.approx(loud.median_us / quiet.median_us, rel=0.1)
    assert first.split()[-1] == "1.00"
    assert f"(2 threads, {len(cores())} busy)" in printed.err


def test_busy_measures_calls_of_two_pictures_by_default(monkeypatch):
    seen = []

    def run(configs, providers):
        seen.append((configs, [provider.name for provider in providers]))
        return iter(())

    monkeypatch.setattr("bench.__main__.run", run)
    assert main(["--busy"]) == 0
    ((configs, providers),) = seen
    assert providers == list(BUSY_PROVIDERS)
    assert len(configs) == 2 * 4 * 5
    assert {config.workload.partition("-")[0] for config in configs} == {"pictures"}
    default = (torch.get_num_threads(), len(cores()))
    assert {(config.threads, config.busy) for config in configs} == {(1, 0), default}


def test_busy_is_for_a_cpu(capsys):
    with pytest.raises(SystemExit):
        main(["--busy", "--device", "cuda"])
    assert "--busy is for --device cpu" in capsys.readouterr().err
