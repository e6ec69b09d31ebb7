"""One point of the benchmark, and the row that it becomes."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TextIO

Status = Literal["ok", "unequal", "error", "not applicable"]


@dataclass(frozen=True)
class Config:
    """What to measure, on what, and for how long.

    Attributes:
        workload: a name in `workloads.SIZES`.
        seq_len: T, the padded length of the workload's rows.
        device: `"cpu"` or `"cuda"`.
        threads: of torch, on the CPU.
        seconds: time to spend on repeats.
        min_repeats: repeats to make however long they take.
        busy: other processes that keep a core busy while times are measured.
    """

    workload: str
    seq_len: int
    device: str = "cpu"
    threads: int = 1
    seconds: float = 0.5
    min_repeats: int = 5
    busy: int = 0


@dataclass(frozen=True)
class Environment:
    """What all rows of a run have in common: hardware and versions."""

    device: str
    threads: int
    vecrope: str
    commit: str
    torch: str
    python: str
    date: str


@dataclass(frozen=True)
class Measurement:
    """What was measured at a point; None is what does not apply there.

    Attributes:
        median_us: wall time of a call, until its answer is there; freeing the answer is left out.
        p20_us: its 20th percentile.
        p80_us: its 80th percentile.
        device_us: median time between CUDA events around the call.
        compile_s: wall time of the first call, where that call compiled.
        peak_bytes: most tensor memory allocated during a call, beyond what stood before it. Of
            Python objects and numpy arrays it knows nothing.
        held_bytes: what is kept of the requests between two steps.
        repeats: number of calls behind the percentiles.
    """

    median_us: float | None = None
    p20_us: float | None = None
    p80_us: float | None = None
    device_us: float | None = None
    compile_s: float | None = None
    peak_bytes: int | None = None
    held_bytes: int | None = None
    repeats: int | None = None


@dataclass(frozen=True)
class Result:
    """One row of the CSV file; its columns are these fields, in this order.

    Attributes:
        workload: the workload's name.
        T: padded length of a row, or the tokens of all sequences where they are packed.
        B: rows, or packed sequences.
        provider: who computed the positions, with the version where that is an upstream's.
        convention: the upstream whose rules the answer was checked by.
        status: `"ok"`, `"unequal"` (nothing was timed), `"error"` or `"not applicable"`.
        error: what went wrong, or why the provider cannot take the workload.
        median_us: and what follows, see `Measurement`.
        threads: of torch, on the CPU.
        busy: other processes that kept a core busy while times were measured.
        device: name of the hardware.
        vecrope: version of vecrope.
        commit: of the repository, with `-dirty` where tracked files had changes.
        torch: version of torch.
        provider_version: version of the distribution that the provider's code comes from.
        python: version of Python.
        date: of the run, in UTC.
    """

    workload: str
    T: int
    B: int
    provider: str
    convention: str
    status: Status
    error: str
    median_us: float | None
    p20_us: float | None
    p80_us: float | None
    device_us: float | None
    compile_s: float | None
    peak_bytes: int | None
    held_bytes: int | None
    repeats: int | None
    threads: int
    busy: int
    device: str
    vecrope: str
    commit: str
    torch: str
    provider_version: str
    python: str
    date: str

    @property
    def name(self) -> str:
        """The provider without the version of an upstream."""
        return self.provider.removesuffix(f"-{self.provider_version}")

    @property
    def failed(self) -> bool:
        """Whether the point should have given a number and did not."""
        return self.status in ("unequal", "error")


COLUMNS = tuple(field.name for field in fields(Result))
# What rows had when the column was not there yet.
_LATER = {"busy": "0"}
_INTEGERS = ("T", "B", "threads", "busy", "peak_bytes", "held_bytes", "repeats")
_FLOATS = ("median_us", "p20_us", "p80_us", "device_us", "compile_s")


class ResultWriter:
    """Writes rows to an open CSV file as they come, so that a run cut short leaves what it has."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(COLUMNS)

    def write(self, result: Result) -> None:
        """Write one row; None becomes an empty cell, times keep a tenth of a microsecond."""
        cells = (getattr(result, name) for name in COLUMNS)
        self._writer.writerow([round(c, 1) if isinstance(c, float) else c for c in cells])
        self._file.flush()


def read_results(paths: Iterable[Path]) -> list[Result]:
    """Read the rows of CSV files that `ResultWriter` wrote.

    Raises:
        ValueError: if a file's columns are not those of `Result`.
    """
    results = []
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            found = tuple(reader.fieldnames or ())
            if found != tuple(name for name in COLUMNS if name in found or name not in _LATER):
                raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)}")
            results += [
                Result(**{name: _parse(name, {**_LATER, **row}[name]) for name in COLUMNS})
                for row in reader
            ]
    return results


def _parse(name: str, cell: str) -> object:
    if name in _INTEGERS:
        return int(cell) if cell else None
    if name in _FLOATS:
        return float(cell) if cell else None
    return cell
