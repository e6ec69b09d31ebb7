import csv
import sys

from bench import share


def test_a_tiny_models_prefill_is_measured_with_its_own_positions_and_patched(
    monkeypatch, tmp_path, capsys
):
    out = tmp_path / "share.csv"
    arguments = ["--model", "qwen2_5_vl", "--mode", "prefill", "--tokens", "245"]
    monkeypatch.setattr(sys, "argv", ["share", *arguments, "--repeats", "1", "--csv", str(out)])
    assert share.main() == 0
    assert "own_positions_ms" in capsys.readouterr().out
    with out.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["model"], row["step"], row["rows"], row["tokens"]) == (
        *("qwen2_5_vl", "prefill", "1", "245"),
    )
    for whose in ("own", "patched"):
        assert 0 < float(row[f"{whose}_positions_ms"]) < float(row[f"{whose}_step_ms"])
