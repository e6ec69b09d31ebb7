"""The tables of the READMEs are those of the committed rows."""

import re
from dataclasses import replace

import pytest
from bench_support import run_quick

from bench import readme
from bench.__main__ import main
from bench.config import ResultWriter, read_results
from bench.mixed import FAMILIES
from bench.providers import vecrope_provider
from bench.tables import Table


@pytest.mark.parametrize("page", readme.PAGES, ids=["README.md", "bench/README.md"])
def test_page_is_what_the_command_writes(page):
    text = page.read_text(encoding="utf-8")
    assert readme.fill(text, readme.texts()) == text


def test_every_table_stands_in_a_page_once():
    pages = "".join(page.read_text(encoding="utf-8") for page in readme.PAGES)
    assert sorted(re.findall(r"<!-- rows: (\S+) -->", pages)) == sorted(readme.texts())


@pytest.mark.parametrize("file", readme.FILES.values(), ids=readme.FILES)
def test_a_chart_is_of_one_commit(file):
    families = {f"mixed-{name}" for name in FAMILIES}
    drawn = [row for row in read_results([file]) if row.workload in families and not row.busy]
    (commit,) = {row.commit for row in drawn}
    assert not commit.endswith("-dirty")


def test_page_with_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="there is no text 'gone', only cpu, cpu-busy"):
        readme.fill("<!-- rows: gone -->\n\n<!-- end -->", readme.texts())


@pytest.fixture
def row():
    return replace(run_quick(vecrope_provider()), median_us=10.0)


def test_cell_is_that_of_its_row(row):
    upstream = replace(
        row, provider="transformers-5.24.0", provider_version="5.24.0", median_us=37.0
    )
    busy = replace(row, busy=2, median_us=1234.4)
    rows = readme.Rows([row, upstream, busy])
    columns = {"a": ("", "vecrope"), "b": ("", "dense")}
    lines = {"here": ("short", 300), "nowhere": ("short", 301)}
    table = Table("cpu", "", columns, lines, over="transformers")
    assert list(rows.cells(table)) == [("here", ["10 (3.7)", "-"])]
    assert list(rows.cells(replace(table, over="vllm"))) == []
    assert list(rows.cells(replace(table, over=None, busy=True))) == [("here", ["1,234", "-"])]
    assert list(rows.cells(replace(table, least=2))) == []


def test_rows_in_which_an_upstream_is_faster_are_listed(row):
    upstream = replace(row, provider="vllm-0.33.0", provider_version="0.33.0")
    rows = [row, replace(upstream, median_us=9.0)]
    for size, its in ((301, 11.0), (302, 8.0), (303, 7.0)):
        rows += [replace(row, T=size), replace(upstream, T=size, median_us=its)]
    assert list(readme.Rows(rows).slower()) == [
        ("`short`", ["300", "vLLM", "9", "10"]),
        ("`short`", ["302 to 303", "vLLM", "7 to 8", "10"]),
    ]


def test_rows_take_the_place_of_those_of_the_same_point(row, tmp_path, monkeypatch):
    committed, new = tmp_path / "cpu.csv", tmp_path / "new.csv"
    monkeypatch.setattr(readme, "FILES", {"cpu": committed})
    for file, rows in (
        (committed, [row, replace(row, T=301)]),
        (new, [replace(row, median_us=20.0), replace(row, busy=2, median_us=30.0)]),
    ):
        with file.open("w", encoding="utf-8") as opened:
            writer = ResultWriter(opened)
            for each in rows:
                writer.write(each)
    readme.merge([new])
    merged = read_results([committed])
    assert [(row.T, row.busy, row.median_us) for row in merged] == [
        (300, 0, 20.0),
        (301, 0, 10.0),
        (300, 2, 30.0),
    ]


def test_rows_of_another_device_are_refused(row, tmp_path, capsys):
    new = tmp_path / "new.csv"
    with new.open("w", encoding="utf-8") as opened:
        ResultWriter(opened).write(replace(row, device="an abacus"))
    with pytest.raises(SystemExit):
        main(["readme", str(new)])
    assert re.search(r"rows must be of .* or NVIDIA H200, got 'an abacus'", capsys.readouterr().err)
