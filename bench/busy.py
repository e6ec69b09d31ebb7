"""Cores kept busy by other processes while something is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# It says that it runs, then spins until it is killed, its time is up, or its parent has gone.
_SPIN = """
import os, sys, time
core, seconds, parent = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
if core >= 0:
    os.sched_setaffinity(0, {core})
end = time.monotonic() + seconds
print("spinning", flush=True)
while time.monotonic() < end and os.getppid() == parent:
    for _ in range(10_000):
        pass
"""


def cores() -> list[int]:
    """Return the cores that this process may run on, or -1 for each where that is not known."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return [-1] * (os.cpu_count() or 1)


@contextmanager
def busy_cores(count: int, seconds: float) -> Iterator[list[subprocess.Popen[str]]]:
    """Keep cores busy, with one process each, for as long as the context is open.

    Args:
        count: processes, spread over the cores that this process may run on.
        seconds: after which they end by themselves, as they do when this process has gone.

    Raises:
        RuntimeError: at the end, if one has ended before, so that its core was not busy throughout.
    """
    processes: list[subprocess.Popen[str]] = []
    available = cores()
    try:
        for number in range(count):
            core = available[number % len(available)]
            command = [sys.executable, "-S", "-E", "-c", _SPIN]
            command += [str(core), str(seconds), str(os.getpid())]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield processes
        if any(process.poll() is not None for process in processes):
            raise RuntimeError(f"a process ended that was to keep its core busy for {seconds:g} s")
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()
