from dataclasses import replace

from bench_support import (
    run_quick,
)

from bench.providers import (
    vecrope_provider,
)
from bench.table import format_table


def test_table_divides_by_vecrope():
    row = run_quick(vecrope_provider())
    slower = replace(row, provider="slower", median_us=3 * row.median_us)
    failed = replace(row, provider="failed", status="error", error="RuntimeError: no")
    lines = format_table([row, slower, failed]).splitlines()
    assert [line.split()[-1] for line in lines[2:4]] == ["1.00", "3.00"]
    assert lines[4].endswith("error: RuntimeError: no")
