"""Write the READMEs' tables from the committed rows: `python -m bench readme`.

A page holds a table between two comments, of which the first has the table's name. What stands
between them is written here and nowhere else, so that each of its numbers is that of a row.
"""

from __future__ import annotations

import csv
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from bench.config import Result, ResultWriter, read_results
from bench.plot import plot
from bench.tables import FAMILIES, TABLES, UPSTREAMS, Table

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "bench" / "README.md")
RESULTS = ROOT / "bench" / "results"
FILES = {"cpu": RESULTS / "cpu.csv", "gpu": RESULTS / "h200.csv"}
SHARES = RESULTS / "h200-share.csv"

_WIDTH = 100

_MODELS = {"qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL"}
_STEPS = {
    "prefill": "prefill of 4,000 tokens, pictures and clips",
    "train": "forward and backward of 8 padded rows of up to 1,000",
}


class Rows:
    """The rows of one device, to be found by what a table knows of them."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.timed = [row for row in results if row.status == "ok"]
        self._by_point = {(*_point(row), row.busy > 0): row for row in self.timed}

    def cells(self, table: Table) -> Iterator[tuple[str, list[str]]]:
        """Yield the heading and the cells of each line that has times enough."""
        for heading, (workload, size) in table.lines.items():
            cells = [
                self._cell(table, workload + suffix, size, provider)
                for suffix, provider in table.columns.values()
            ]
            if len(cells) - cells.count("-") >= table.least:
                yield heading, cells

    def _cell(self, table: Table, workload: str, size: int, provider: str) -> str:
        own = self._microseconds(workload, size, provider, table.busy)
        if table.over is None or own is None:
            return _time(own)
        over = self._microseconds(workload, size, table.over, table.busy)
        return "-" if over is None else f"{_time(own)} ({_times(over / own)})"

    def of_families(self, kind: str, size: int, provider: str) -> list[float]:
        """Return the times of a provider at a point of each family that a table shows."""
        names = [f"{kind}-{family}" for family in FAMILIES]
        times = [self._microseconds(name, size, provider, False) for name in names]
        return [time for time in times if time is not None]

    def environment(self) -> str:
        """Say what the rows were measured on and with."""
        first = self.timed[0]
        upstreams = {
            f"{UPSTREAMS[row.name]} {row.provider_version}"
            for row in self.timed
            if row.name in UPSTREAMS and row.name != "sglang-host"
        }
        runs = sorted({f"{row.commit} ({row.date})" for row in self.timed})
        releases = [f"Python {first.python}", f"torch {first.torch}", *sorted(upstreams)]
        text = f"{first.device}; {', '.join(releases)}; vecrope at {', '.join(runs)}."
        return textwrap.fill(text, _WIDTH)

    def slower(self) -> Iterator[tuple[str, list[str]]]:
        """Yield where an upstream takes less time than vecrope on quiet cores, size by size."""
        upstreams = [row for row in self.timed if row.name in UPSTREAMS and not row.busy]
        upstreams.sort(key=lambda row: (row.workload, row.name, _size(row)))
        for (workload, name, slower), of_run in groupby(
            upstreams, key=lambda row: (row.workload, row.name, self._is_slower(row))
        ):
            if slower:
                run = list(of_run)
                own = [self._microseconds(workload, _size(row), "vecrope", False) for row in run]
                columns = ([row.T for row in run], [row.median_us for row in run], own)
                tokens, its, ours = map(_range, columns)
                yield f"`{workload}`", [tokens, UPSTREAMS[name], its, ours]

    def _is_slower(self, row: Result) -> bool:
        """Tell whether vecrope takes more time than an upstream's row."""
        own = self._microseconds(row.workload, _size(row), "vecrope", False)
        return own is not None and own > (row.median_us or 0)

    def _microseconds(self, workload: str, size: int, provider: str, busy: bool) -> float | None:
        row = self._by_point.get((workload, size, provider, busy))
        return row and row.median_us


def texts() -> dict[str, str]:
    """Return what is between the comments of each name."""
    rows = {device: Rows(read_results([file])) for device, file in FILES.items()}
    written = {
        name: _format([table.corner, *table.columns], rows[table.device].cells(table))
        for name, table in TABLES.items()
    }
    for device, of_device in rows.items():
        written[f"{device}-rows"] = of_device.environment()
        header = ["workload", "tokens", "upstream", "its time", "vecrope"]
        written[f"{device}-slower"] = _format(header, of_device.slower())
    written["cpu-in-words"] = _prompt_in_words(rows["cpu"])
    with SHARES.open(newline="", encoding="utf-8") as file:
        shares = {(row["step"], row["model"]): row for row in csv.DictReader(file)}
    return {**written, "share": _share_table(shares), "share-in-words": _share_in_words(shares)}


def fill(page: str, texts: Mapping[str, str]) -> str:
    """Return a page with each text between its comments.

    Raises:
        ValueError: if the page names a text that there is none of.
    """

    def text(found: re.Match[str]) -> str:
        if found[1] not in texts:
            raise ValueError(f"there is no text {found[1]!r}, only {', '.join(texts)}")
        return f"<!-- rows: {found[1]} -->\n\n{texts[found[1]]}\n\n<!-- end -->"

    return re.sub(r"<!-- rows: (\S+) -->\n.*?<!-- end -->", text, page, flags=re.DOTALL)


def merge(paths: Sequence[Path]) -> None:
    """Put the rows of CSV files into the committed ones, in the place of those of the same points.

    Raises:
        ValueError: if a row is of a device that no committed file is of.
    """
    committed = {device: read_results([file]) for device, file in FILES.items()}
    device_of = {rows[0].device: device for device, rows in committed.items()}
    for row in read_results(paths):
        if row.device not in device_of:
            raise ValueError(f"rows must be of {' or '.join(device_of)}, got {row.device!r}")
        committed[device_of[row.device]].append(row)
    for device, rows in committed.items():
        with FILES[device].open("w", encoding="utf-8") as file:
            writer = ResultWriter(file)
            for row in {(*_point(row), row.B, row.busy > 0): row for row in rows}.values():
                writer.write(row)


def write() -> None:
    """Write the pages and draw the charts."""
    written = texts()
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8"), written), encoding="utf-8")
    for file in FILES.values():
        plot(read_results([file]), file.with_suffix(".png"))


def _point(row: Result) -> tuple[str, int, str]:
    return row.workload, _size(row), row.name


def _size(row: Result) -> int:
    return row.B if "-packed" in row.workload else row.T


def _prompt_in_words(rows: Rows) -> str:
    times = [rows.of_families("mixed", 4000, name) for name in ("vecrope", "transformers")]
    (ours, upstream) = (f"{min(each) / 1e3:.1f} to {max(each) / 1e3:.1f} ms" for each in times)
    text = (
        f"On one thread of a CPU, a prompt of 4,000 tokens with pictures and clips takes {ours}, "
        f"depending on the family, where transformers takes {upstream}."
    )
    return textwrap.fill(text, _WIDTH)


def _share_table(shares: Mapping[tuple[str, str], Mapping[str, str]]) -> str:
    header = ["step", "model", "whole step", "positions, transformers", "positions, vecrope"]
    lines = []
    for (step, model), row in sorted(shares.items()):
        whole, own, ours = _milliseconds(row)
        lines.append((_STEPS[step], [_MODELS[model], f"{whole:,.0f}", f"{own:.1f}", f"{ours:.2f}"]))
    return _format(header, lines)


def _share_in_words(shares: Mapping[tuple[str, str], Mapping[str, str]]) -> str:
    of = {key: _milliseconds(row) for key, row in shares.items()}
    first, own, ours = of["prefill", "qwen3_vl"]
    text = (
        "For a 4,000-token prompt with pictures and clips, the time to the first token is "
        f"{first:.0f} ms with Qwen3-VL; position ids take {own:.1f} ms of it, or {ours:.1f} ms "
    )
    first, own, ours = of["prefill", "qwen2_5_vl"]
    text += f"with vecrope. With Qwen2.5-VL they take {own:.1f} ms of {first:.0f}, or {ours:.1f}. "
    parts = {model: 100 * of["train", model][1] / of["train", model][0] for model in _MODELS}
    text += (
        "In a training step of 8 padded prompts of up to 1,000 tokens, position ids take "
        f"{parts['qwen3_vl']:.1f} % of the time with Qwen3-VL and {parts['qwen2_5_vl']:.1f} % with "
        "Qwen2.5-VL."
    )
    return textwrap.fill(text, _WIDTH)


def _milliseconds(row: Mapping[str, str]) -> tuple[float, float, float]:
    names = ("own_step_ms", "own_positions_ms", "patched_positions_ms")
    whole, own, ours = (float(row[name]) for name in names)
    return whole, own, ours


def _format(header: Sequence[str], lines: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return a table without its empty columns; numbers are on the right."""
    rows = [(heading, *cells) for heading, cells in lines]
    if not rows:
        return "Not measured yet."
    filled = [column for column in zip(header, *rows, strict=True) if {*column[1:]} != {"-"}]
    first, *others = zip(*filled, strict=True)
    numbers = [all(cell[:1] in "-0123456789" for cell in column[1:]) for column in filled[1:]]
    rule = ["---", *("--:" if right else "---" for right in numbers)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (first, rule, *others))


def _range(values: Sequence[float]) -> str:
    low, high = _time(min(values)), _time(max(values))
    return low if low == high else f"{low} to {high}"


def _time(microseconds: float | None) -> str:
    return "-" if microseconds is None else f"{microseconds:,.0f}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"
