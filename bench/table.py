"""Rows as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from bench.config import Result

_HEADER = (
    "workload", "T", "B", "threads", "busy", "provider", "median µs", "p20 µs", "p80 µs",
    "device µs", "compile s", "peak KiB", "held KiB", "÷ vecrope", "÷ quiet",
)  # fmt: skip
_LEFT = (0, 5)  # columns of words; the others are numbers


def format_table(results: Sequence[Result]) -> str:
    """Return the rows as aligned text, with each time divided by vecrope's at the same point.

    What was measured on busy cores is divided by the provider's own time on quiet ones as well.
    """
    timed = [row for row in results if row.status == "ok"]
    of_vecrope = {_point(row): row.median_us for row in timed if row.provider == "vecrope"}
    quiet = {(row.provider, *_prompts(row)): row.median_us for row in timed if not row.busy}
    lines = [list(_HEADER)]
    for row in results:
        cells = [row.workload, f"{row.T:,}", f"{row.B:,}", f"{row.threads}", f"{row.busy}"]
        cells += [row.provider]
        if row.median_us is not None:
            ratio = _ratio(row.median_us, of_vecrope.get(_point(row)))
            quiet_us = quiet.get((row.provider, *_prompts(row))) if row.busy else None
            slowed = _ratio(row.median_us, quiet_us)
            peak, held = (None if b is None else b / 1024 for b in (row.peak_bytes, row.held_bytes))
            times = (row.median_us, row.p20_us, row.p80_us, row.device_us, row.compile_s)
            cells += [_number(value, 1) for value in times]
            cells += [_number(peak, 1), _number(held, 1), _number(ratio, 2)]
            cells += [_number(slowed, 2)]
        lines.append(cells)
    widths = [
        max(map(len, filled)) for filled in zip(*(_filled(line) for line in lines), strict=True)
    ]
    text = []
    for number, cells in enumerate(lines):
        padded = [
            cell.ljust(width) if column in _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=False))
        ]
        if number and results[number - 1].status != "ok":
            row = results[number - 1]
            padded.append(f"{row.status}: {row.error}")
        text.append("  ".join(padded).rstrip())
        if number == 0:
            text.append("  ".join("-" * width for width in widths))
    return "\n".join(text)


def _prompts(row: Result) -> tuple[str, int, int]:
    return row.workload, row.T, row.B


def _point(row: Result) -> tuple[str, int, int, int, int]:
    return *_prompts(row), row.threads, row.busy


def _ratio(value: float, base: float | None) -> float | None:
    return value / base if base else None


def _filled(cells: list[str]) -> list[str]:
    return cells + [""] * (len(_HEADER) - len(cells))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
