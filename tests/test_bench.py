import csv
import itertools
import zipfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from own_support import SGLANG_WHEEL, VLLM_WHEEL, needs_sglang, needs_vllm

from bench import runner
from bench.__main__ import main
from bench.config import COLUMNS, Config, Environment, ResultWriter, read_results
from bench.plot import plot
from bench.providers import (
    STEPS,
    Provider,
    dense_provider,
    loop_answer,
    loop_provider,
    tensor_arguments,
    vecrope_concatenate_provider,
    vecrope_placeholders_provider,
    vecrope_plan_provider,
    vecrope_provider,
    vecrope_unchecked_provider,
)
from bench.registry import PROVIDERS, make_providers
from bench.table import format_table
from bench.upstreams import (
    sglang_provider,
    text_only_provider,
    transformers_provider,
    vllm_provider,
)
from bench.wheels import Wheel, load
from bench.workloads import SIZES, make_workload
from vecrope import MRopeSpec, plan_rope_index
from vecrope.testing import reference

SPEC = MRopeSpec.for_model("glm4v", convention="sglang")
ENVIRONMENT = Environment("a CPU", 1, "0.1.0", "abc", "2.13.0", "3.11.0", "2026-01-01")
SMALL = [("seed", 1), ("seed", 2), ("seed", 512), ("seed", 1024), ("short", 300), ("video", 4096)]
LARGE = [("batch", 4096)]
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "ernie4_5_vl_moe", "qwen3_omni_moe"]

points = pytest.mark.parametrize(("name", "seq_len"), SMALL + LARGE)


def quick(name="short", seq_len=300):
    return Config(name, seq_len, seconds=0.001, min_repeats=2)


def run_quick(provider, name="short", seq_len=300):
    (result,) = runner.run_point(quick(name, seq_len), [provider], ENVIRONMENT)
    return result


# Workloads


def test_sizes_are_those_that_the_help_names():
    assert SIZES["seed"] == tuple(2**exponent for exponent in range(18))
    assert SIZES["video"] == (4096, 32768, 131072)
    assert (SIZES["batch"], SIZES["short"]) == ((4096,), (300,))
    assert SIZES["long"] == (2**20, 2**21, 2**22, 2**23)
    assert {SIZES[name] for name in FAMILIES} == {(1024, 16384, 131072)}
    assert {SIZES[name] for name in STEPS} == {(4096,)}


@points
def test_workload_has_its_shape_and_types(name, seq_len):
    workload = make_workload(name, seq_len)
    shape = (32 if name == "batch" else 1, seq_len)
    assert workload.input_ids.shape == workload.mm_token_type_ids.shape == shape
    tensors = [value for value in vars(workload).values() if isinstance(value, torch.Tensor)]
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


@points
def test_workload_types_are_the_ones_read_off_its_ids(name, seq_len):
    workload = make_workload(name, seq_len)
    for row, types in zip(workload.input_ids, workload.mm_token_type_ids, strict=True):
        read = reference.token_types(
            row.tolist(),
            image_token_id=SPEC.image_token_id,
            video_start_token_id=SPEC.video_start_token_id,
            video_end_token_id=SPEC.video_end_token_id,
            marker_rule="last",
        )
        assert types.tolist() == read


@points
def test_num_segments_is_the_least_capacity_that_is_enough(name, seq_len):
    workload = make_workload(name, seq_len)
    count = workload.num_segments
    arguments = tensor_arguments(workload)
    plan_rope_index(workload.input_ids, SPEC, **arguments, max_segments=count)
    if count > 1:
        with pytest.raises(ValueError, match=f"max_segments must be at least {count}"):
            plan_rope_index(workload.input_ids, SPEC, **arguments, max_segments=count - 1)


def test_seed_holds_an_image_and_a_frame_where_they_fit():
    for seq_len in SIZES["seed"]:
        workload = make_workload("seed", seq_len)
        counts = torch.bincount(workload.mm_token_type_ids[0], minlength=3).tolist()
        if seq_len < 1024:
            assert counts == [seq_len, 0, 0]
            assert workload.image_grid_thw is None
            assert workload.video_grid_thw is None
        else:
            assert counts == [seq_len - 512, 256, 256]
            assert workload.image_grid_thw.tolist() == [[1, 32, 32]]
            assert workload.video_grid_thw.tolist() == [[1, 32, 32]]


@pytest.mark.parametrize(("seq_len", "frames"), [(4096, 15), (32768, 124), (131072, 496)])
def test_video_fills_its_row_with_frames_eight_tokens_apart(seq_len, frames):
    workload = make_workload("video", seq_len)
    assert workload.video_grid_thw.tolist() == [[frames, 32, 32]]
    types = workload.mm_token_type_ids[0]
    starts = (types.diff() == 2).nonzero().flatten() + 1
    stops = (types.diff() == -2).nonzero().flatten() + 1
    assert (stops - starts).tolist() == [256] * frames
    assert (starts[1:] - stops[:-1]).tolist() == [8] * (frames - 1)
    assert seq_len - int(stops[-1]) < 264


def test_batch_is_ragged_and_padded_on_both_sides():
    workload = make_workload("batch", 4096)
    mask = workload.attention_mask
    assert (mask.diff(dim=1) != 0).sum(1).max() == 2  # one run of tokens a row
    assert mask.sum(1).unique().numel() > 24
    assert (mask[:, 0] == 0).any()
    assert (mask[:, -1] == 0).any()
    assert workload.mm_token_type_ids.masked_fill(mask == 1, 0).eq(0).all()
    assert len(workload.image_grid_thw) > 32
    assert len(workload.video_grid_thw) > 32


def test_batch_is_the_same_each_time():
    first = make_workload("batch", 4096)
    make_workload.cache_clear()
    assert torch.equal(make_workload("batch", 4096).input_ids, first.input_ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_workload_of_a_family_holds_an_image_a_video_and_text(name):
    for seq_len in SIZES[name]:
        workload = make_workload(name, seq_len)
        spec = MRopeSpec.for_model(name, convention="sglang")
        assert workload.model_type == name
        assert workload.input_ids.shape == (1, seq_len)
        counts = torch.bincount(workload.mm_token_type_ids[0]).tolist()
        assert counts[1:] == [256, seq_len // 2]
        frames = seq_len // 512 * spec.temporal_merge_size
        assert workload.image_grid_thw.tolist() == [[1, 32, 32]]
        assert workload.video_grid_thw.tolist() == [[frames, 32, 32]]
        assert (workload.second_per_grid_ts is not None) == (spec.video_time == "seconds")
        assert (workload.audio_seqlens is not None) == (name == "qwen3_omni_moe")


def test_step_mixes_chunks_of_prompts_with_decoding():
    for name, chunks in (("step", 64), ("step-decode", 0)):
        workload = make_workload(name, 4096)
        requests, computed, scheduled = workload.step
        lengths = workload.attention_mask.sum(1).tolist()
        assert len(requests) == len(workload.input_ids) == 256
        assert [request.input_ids.shape[1] for request in requests] == lengths
        in_prefill = [at < length for at, length in zip(computed, lengths, strict=True)]
        assert sum(in_prefill) == chunks
        assert max(scheduled) == (512 if chunks else 1)


# Providers


@points
@pytest.mark.parametrize(
    "make", [vecrope_provider, vecrope_unchecked_provider, loop_provider, transformers_provider]
)
def test_provider_gives_the_expected_answer(name, seq_len, make):
    row = run_quick(make(), name, seq_len)
    assert (row.status, row.error) == ("ok", "")
    assert row.p20_us <= row.median_us <= row.p80_us
    assert row.repeats >= 2


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "make",
    [
        vecrope_provider,
        vecrope_unchecked_provider,
        vecrope_placeholders_provider,
        loop_provider,
        transformers_provider,
    ],
)
def test_provider_gives_the_expected_answer_for_a_family(name, make):
    row = run_quick(make(), name, 1024)
    if make is vecrope_placeholders_provider and name == "qwen3_omni_moe":
        assert row.status == "not applicable"
    else:
        assert (row.status, row.error) == ("ok", "")


@pytest.mark.parametrize(("name", "seq_len"), [("seed", 1), ("seed", 1024), ("video", 4096)])
def test_placeholders_give_the_expected_answer(name, seq_len):
    for provider in (vecrope_placeholders_provider(), vecrope_plan_provider()):
        row = run_quick(provider, name, seq_len)
        assert (row.status, row.error) == ("ok", "")


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(
    "make",
    [
        vecrope_provider,
        vecrope_unchecked_provider,
        vecrope_concatenate_provider,
        dense_provider,
    ],
)
def test_provider_gives_the_expected_step(name, make):
    row = run_quick(make(), name, 4096)
    assert (row.status, row.error) == ("ok", "")
    dense = 256 * 3 * 4096 * 4
    assert row.held_bytes == dense if make is dense_provider else row.held_bytes < dense / 32


@cache
def sglang():
    return sglang_provider(Path(SGLANG_WHEEL))


@cache
def vllm():
    return vllm_provider(Path(VLLM_WHEEL))


@needs_sglang
@pytest.mark.parametrize(("name", "seq_len"), [*SMALL, *[(name, 1024) for name in FAMILIES]])
def test_sglang_gives_the_expected_answer(name, seq_len):
    row = run_quick(sglang(), name, seq_len)
    assert (row.status, row.error) == ("ok", "")


@needs_sglang
@pytest.mark.parametrize("name", STEPS)
def test_sglang_gives_the_expected_step(name):
    row = run_quick(sglang(), name, 4096)
    assert (row.status, row.error) == ("ok", "")
    workload = make_workload(name, 4096)
    assert row.held_bytes == 24 * int(workload.attention_mask.sum()) + 8 * 256


@needs_vllm
@pytest.mark.parametrize(("name", "seq_len"), [*SMALL, *[(name, 1024) for name in FAMILIES]])
def test_vllm_gives_the_expected_answer(name, seq_len):
    row = run_quick(vllm(), name, seq_len)
    assert (row.status, row.error) == ("ok", "")


def test_provider_of_prompts_does_not_apply_to_a_step():
    row = run_quick(loop_provider(), "step-decode", 4096)
    assert (row.status, row.error) == ("not applicable", "numbers prompts, not steps")


def test_provider_of_a_family_does_not_apply_to_another():
    provider = replace(loop_provider(), families=("glm4v",))
    row = run_quick(provider, "qwen3_vl", 1024)
    assert (row.status, row.error) == ("not applicable", "for glm4v only")


def test_oracle_follows_the_convention():
    workload = make_workload("batch", 4096)
    padding = workload.attention_mask == 0
    for convention, value in (("sglang", 1), ("transformers", 0)):
        position_ids, _ = loop_answer(workload, convention)
        assert position_ids[:, padding].unique().tolist() == [value]


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (
            lambda p, d: (p + (p == 7), d),
            "position_ids[0, 0, 7]: expected 7, got 8; 3 of 900 differ",
        ),
        (lambda p, d: (p, d + 1), "rope_deltas[0, 0]: expected -112, got -111; 1 of 1 differ"),
        (lambda p, d: (p[:, 0], d), "position_ids must have shape (3, 1, 300), got (3, 300)"),
        (lambda p, d: (p.int(), d), "position_ids must be torch.int64, got torch.int32"),
    ],
    ids=["position", "delta", "shape", "dtype"],
)
def test_provider_that_lies_becomes_an_unequal_row(lie, error):
    honest = vecrope_provider()

    def prepare(workload):
        call = honest.prepare(workload)
        return lambda: lie(*call())

    row = run_quick(replace(honest, prepare=prepare))
    assert (row.status, row.error) == ("unequal", error)
    assert row.failed
    assert row.median_us is None


def break_down(_workload):
    raise RuntimeError("no such\nkernel")


BROKEN = Provider("broken", "1.0", "sglang", break_down)


def test_exception_becomes_an_error_row():
    row = run_quick(BROKEN)
    assert (row.status, row.error) == ("error", "RuntimeError: no such kernel")
    assert row.failed


def test_providers_take_turns():
    calls = []

    def provider(name):
        honest = vecrope_provider()

        def prepare(workload):
            call = honest.prepare(workload)
            return lambda: calls.append(name) or call()

        return replace(honest, name=name, prepare=prepare)

    providers = [provider("first"), BROKEN, provider("second")]
    rows = runner.run_point(quick(), providers, ENVIRONMENT)
    assert [(row.provider, row.status) for row in rows] == [
        ("first", "ok"), ("broken", "error"), ("second", "ok"),
    ]  # fmt: skip
    turns = [name for name, _ in itertools.groupby(calls)]
    # To be checked, timed in rounds, and weighed.
    assert turns == ["first", "second"] * (1 + runner._ROUNDS + 1)


def test_provider_that_takes_one_row_does_not_apply_to_a_batch():
    row = run_quick(replace(vecrope_provider(), one_row_only=True), "batch", 4096)
    assert (row.status, row.error) == ("not applicable", "takes one row without padding")
    assert not row.failed


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


# Measuring


def test_memory_is_the_peak_and_not_the_sum():
    def call():
        for _ in range(3):
            torch.zeros(1000, dtype=torch.int64)
        return torch.zeros(500, dtype=torch.int64)

    assert runner.measure_memory(call, quick()) == 8000


def test_memory_counts_what_stands_together():
    def call():
        first = torch.ones(1000, dtype=torch.int64)
        return first, first.clone()

    assert runner.measure_memory(call, quick()) == 16000


def test_time_is_in_microseconds():
    wall_us, device_us = runner.measure_time(lambda: torch.ones(8), quick())
    assert len(wall_us) >= 2
    assert 0.1 < min(wall_us) < 100_000
    assert device_us == []


# Wheels


@pytest.fixture(params=["wheel", "folder"])
def wheel(request, tmp_path):
    members = {
        "thing-1.2.dist-info/METADATA": "Name: thing",
        "thing/code.py": (
            "import nothing_like_this\n"
            "class Outer(nothing_like_this.Base):\n"
            "    @staticmethod\n"
            "    def double(x: nothing_like_this.Type):\n"
            "        return factor * x\n"
        ),
    }
    if request.param == "wheel":
        path = tmp_path / "thing-1.2-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in members.items():
                archive.writestr(name, text)
        return Wheel(path, "thing")
    for name, text in members.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return Wheel(tmp_path, "thing")


def test_method_is_loaded_without_the_rest_of_its_file(wheel):
    assert wheel.version == "1.2"
    assert load(wheel, "thing/code.py", "Outer.double", factor=2)["double"](21) == 42


def test_wheel_without_the_definition_says_so(wheel):
    with pytest.raises(ValueError, match=r"thing/code\.py defines no Outer\.triple"):
        load(wheel, "thing/code.py", "Outer.triple")
    with pytest.raises(ValueError, match=r"has no file thing/other\.py"):
        load(wheel, "thing/other.py", "Outer")


def test_wheel_of_another_distribution_is_refused(wheel):
    with pytest.raises(ValueError, match="must hold sglang, it has no metadata of it"):
        text_only_provider(wheel.path)


def test_installed_providers_are_the_default():
    made = make_providers(None, {"sglang": None, "sglang_old": None, "vllm": None})
    names = ["vecrope", "vecrope-unchecked", "vecrope-compiled", "vecrope-placeholders"]
    names += [
        "vecrope-plan",
        "vecrope-concatenate",
        "vecrope-runner",
        "vecrope-runner-in-place",
        "dense",
    ]
    names += ["loop", "transformers"]
    assert [provider.name for provider in made] == names
    assert list(PROVIDERS[:11]) == names


def test_long_batches_are_for_those_that_answer_in_time():
    workload = replace(make_workload("short", 300), name="long")
    made = make_providers(None, {"sglang": None, "sglang_old": None, "vllm": None})
    fit = {provider.name for provider in made if not provider.why_not(workload)}
    assert fit == {"vecrope", "vecrope-unchecked"}
    reasons = {provider.why_not(workload) for provider in made} - {""}
    assert reasons == {
        "takes seconds a call at this length",
        "for step, step-decode only",
        "needs a CUDA device; run it with --device cuda",
    }


# The command line and its files


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


def test_table_divides_by_vecrope():
    row = run_quick(vecrope_provider())
    slower = replace(row, provider="slower", median_us=3 * row.median_us)
    failed = replace(row, provider="failed", status="error", error="RuntimeError: no")
    lines = format_table([row, slower, failed]).splitlines()
    assert [line.split()[-1] for line in lines[2:4]] == ["1.00", "3.00"]
    assert lines[4].endswith("error: RuntimeError: no")


@pytest.fixture
def rows():
    row = run_quick(vecrope_provider())
    return [
        replace(row, workload=workload, T=seq_len, provider=provider)
        for workload in ("seed", "video")
        for seq_len in (1024, 4096)
        for provider in ("vecrope", "loop", "sglang-0.5.8", "sglang-0.5.23")
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


def test_plot_refuses_rows_of_two_devices(rows, tmp_path):
    mixed = [*rows, replace(rows[0], device="another")]
    with pytest.raises(ValueError, match="rows must be of one device"):
        plot(mixed, tmp_path / "results.svg")


def test_plot_command_draws_what_a_run_wrote(tmp_path):
    table, out = tmp_path / "rows.csv", tmp_path / "results.svg"
    options = "--workload seed --provider vecrope --max-tokens 4 --seconds 0.001 --csv"
    assert main([*options.split(), str(table)]) == 0
    assert main(["plot", str(table), "--out", str(out)]) == 0
    assert out.read_text().lstrip().startswith("<?xml")


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
    assert {*SIZES, *PROVIDERS} <= set(words)
