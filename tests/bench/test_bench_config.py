from dataclasses import replace

from bench_support import (
    run_quick,
)

from bench.config import ResultWriter, read_results
from bench.providers import (
    vecrope_provider,
)


def test_rows_survive_the_file(tmp_path):
    rows = [
        run_quick(vecrope_provider()),
        run_quick(replace(vecrope_provider(), one_row_only=True), "batch", 4096),
    ]
    path = tmp_path / "rows.csv"
    with path.open("w") as file:
        writer = ResultWriter(file)
        for row in rows:
            writer.write(row)
    read = read_results([path])
    times = ("median_us", "p20_us", "p80_us")
    expected = [replace(rows[0], **{name: round(getattr(rows[0], name), 1) for name in times})]
    assert read == [*expected, rows[1]]
