from dataclasses import replace

import matplotlib
import pytest
from bench_support import (
    run_quick,
)

from bench.__main__ import main
from bench.plot import plot
from bench.providers import (
    vecrope_provider,
)


@pytest.fixture
def rows():
    row = run_quick(vecrope_provider())
    return [
        replace(row, workload=workload, T=seq_len, provider=provider, provider_version="0.5.23")
        for workload in ("mixed-glm4v", "mixed-qwen3_vl")
        for seq_len in (1024, 4096)
        for provider in ("vecrope", "transformers", "loop", "sglang-0.5.23")
    ]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_plot_writes_a_file(rows, tmp_path, suffix):
    out = tmp_path / f"results{suffix}"
    plot(rows, out)
    assert out.stat().st_size > 1000


def test_plot_is_the_same_each_time(rows, tmp_path):
    texts = []
    for name in ("a.svg", "b.svg"):
        plot(rows, tmp_path / name)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]


def test_a_panels_title_says_by_what_factor_vecrope_is_faster(rows, tmp_path):
    times = {("vecrope", 1024): 10, ("vecrope", 4096): 20}
    times |= {("transformers", 1024): 25, ("transformers", 4096): 1000}
    timed = [
        replace(row, median_us=times.get((row.provider, row.T), row.median_us)) for row in rows
    ]
    out = tmp_path / "results.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot(timed, out)
    drawn = out.read_text()
    assert "glm4v: 2.5 to 50 times as fast as transformers" in drawn
    assert "sglang-0.5.23" in drawn
    assert ">loop<" not in drawn


def test_plot_refuses_rows_of_two_devices(rows, tmp_path):
    mixed = [*rows, replace(rows[0], device="another")]
    with pytest.raises(ValueError, match="rows must be of one device"):
        plot(mixed, tmp_path / "results.svg")


def test_plot_command_draws_what_a_run_wrote(tmp_path):
    table, out = tmp_path / "rows.csv", tmp_path / "results.svg"
    options = "--workload mixed-glm4v --provider vecrope --max-tokens 400 --seconds 0.001 --csv"
    assert main([*options.split(), str(table)]) == 0
    assert main(["plot", str(table), "--out", str(out)]) == 0
    assert out.read_text().lstrip().startswith("<?xml")
