import csv
from functools import partial
from pathlib import Path

import pytest
import torch
from bench_support import (
    BROKEN,
)

from bench.__main__ import GROUPS, main
from bench.config import COLUMNS, read_results
from bench.registry import PROVIDERS
from bench.workloads import SIZES


def test_run_writes_tidy_rows(tmp_path, capsys):
    out = tmp_path / "rows.csv"
    options = "--workload short seed --provider vecrope loop --max-tokens 300 --seconds 0.001"
    assert main([*options.split(), "--csv", str(out)]) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 2 * (1 + 9)
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["device"] and row["commit"] and row["date"] for row in rows)
    assert all(row["peak_bytes"] for row in rows if row["provider"] == "vecrope")
    assert not any(row["device_us"] or row["compile_s"] for row in rows)
    printed = capsys.readouterr()
    assert "÷ vecrope" in printed.out
    assert "[20/20] seed 256 loop: " in printed.err


def test_failed_point_sets_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr("bench.__main__.make_providers", lambda *_: [BROKEN])
    assert main(["--workload", "short"]) == 1
    printed = capsys.readouterr()
    assert "[1/1] short 300 broken: error: RuntimeError: no such kernel" in printed.err
    assert printed.out.splitlines()[-1].endswith("error: RuntimeError: no such kernel")


def test_compiled_provider_compiles_once_for_many_sizes(tmp_path, monkeypatch):
    # Machine code takes a while, and is for other tests.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    out = tmp_path / "rows.csv"
    main(
        [
            "--provider",
            "vecrope-compiled",
            "--workload",
            "video",
            "--max-tokens",
            "32768",
            "--seconds",
            "0.01",
            "--csv",
            str(out),
        ]
    )
    first, second = read_results([out])
    assert first.compile_s > 0
    assert second.compile_s is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workload", "nonsense"], "argument --workload: invalid choice: 'nonsense'"),
        (["--provider", "nonsense"], "argument --provider: invalid choice: 'nonsense'"),
        (["--provider", "sglang-old"], "provider sglang-old needs --sglang-old PATH"),
        (["--sglang", "nowhere.whl"], "nowhere.whl does not exist; a wheel of sglang is needed"),
        (["--vllm", __file__], "must be a wheel or a folder"),
        (["--threads", "0"], "--threads: must be a whole number of at least 1, got '0'"),
        (["--seconds", "-1"], "--seconds: must be a number above 0, got '-1'"),
        (["--workload", "batch", "--max-tokens", "9"], "no workload has at most 9 tokens"),
        (["--csv", "no/such/folder/rows.csv"], "No such file or directory"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["plot", "nowhere.csv", "--out", "x.svg"], "No such file or directory: 'nowhere.csv'"),
        (["plot", __file__, "--out", "x.svg"], "must have the columns workload, T, B, provider"),
        (["plot", "nowhere.csv"], "the following arguments are required: --out"),
    ],
    ids=lambda value: (
        " ".join(Path(word).name for word in value) if isinstance(value, list) else ""
    ),
)
def test_bad_arguments_are_one_line_and_exit_2(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert message in printed.err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_run_on_a_gpu_has_device_times(tmp_path):
    out = tmp_path / "rows.csv"
    options = "--device cuda --workload short batch --provider vecrope loop transformers "
    options += "vecrope-runner vecrope-runner-in-place"
    assert main([*options.split(), "--seconds", "0.01", "--csv", str(out)]) == 0
    rows = read_results([out])
    assert {row.provider for row in rows if row.status == "not applicable"} == {"loop"}
    timed = [row for row in rows if row.status == "ok"]
    assert len(timed) == 8
    assert all(row.device_us > 0 for row in timed)
    assert {row.device for row in rows} == {torch.cuda.get_device_name()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to run on")
def test_cuda_without_a_device_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--device", "cuda"])
    assert exit_info.value.code == 2
    assert "--device cuda needs a CUDA device, torch finds none" in capsys.readouterr().err


def test_help_names_every_workload_and_provider(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    words = capsys.readouterr().out.split()
    in_groups = {name for names in GROUPS.values() for name in names}
    named = {*GROUPS, *PROVIDERS, *(name for name in SIZES if name not in in_groups)}
    assert named <= {word.rstrip(",") for word in words}
