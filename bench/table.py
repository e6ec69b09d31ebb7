"""Rows as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from bench.config import Result

_HEADER = (
    "workload", "T", "B", "provider", "median µs", "p20 µs", "p80 µs", "device µs", "compile s",
    "peak KiB", "held KiB", "÷ vecrope",
)  # fmt: skip
_LEFT = (0, 3)  # columns of words; the others are numbers


def format_table(results: Sequence[Result]) -> str:
    """Return the rows as aligned text, with each time divided by vecrope's at the same point."""
    base = {
        (row.workload, row.T, row.B): row.median_us
        for row in results
        if row.provider == "vecrope" and row.status == "ok"
    }
    lines = [list(_HEADER)]
    for row in results:
        cells = [row.workload, f"{row.T:,}", f"{row.B:,}", row.provider]
        if row.median_us is not None:
            vecrope_us = base.get((row.workload, row.T, row.B))
            ratio = row.median_us / vecrope_us if vecrope_us else None
            peak, held = (None if b is None else b / 1024 for b in (row.peak_bytes, row.held_bytes))
            times = (row.median_us, row.p20_us, row.p80_us, row.device_us, row.compile_s)
            cells += [_number(value, 1) for value in times]
            cells += [_number(peak, 1), _number(held, 1), _number(ratio, 2)]
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


def _filled(cells: list[str]) -> list[str]:
    return cells + [""] * (len(_HEADER) - len(cells))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
