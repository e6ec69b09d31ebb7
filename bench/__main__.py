"""The command line: `python -m bench`, with `plot` and `readme`."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch

from bench import mixed, mixed_own, readme
from bench.busy import cores
from bench.config import Config, Result, ResultWriter, read_results
from bench.plot import plot
from bench.provider import Provider
from bench.registry import BUSY_PROVIDERS, PROVIDERS, WHEEL_NAMES, make_providers
from bench.runner import describe_environment, run_point
from bench.table import format_table
from bench.workloads import SIZES, make_workload

# Parameters of glibc's mallopt, by their numbers in malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

GROUPS = {**mixed.GROUPS, **mixed_own.GROUPS}

_BUSY_GROUPS = ("pictures", "pictures-batch", "pictures-packed", "pictures-step")

_RUN_DESCRIPTION = """\
Measure how long vecrope and the functions that it replaces take to number the tokens of a prompt.
Each answer is first compared with an independent one; what fails becomes a row that says how.

workloads:
  mixed, mixed-batch, mixed-packed, mixed-touching
           prompts of pictures and clips that all differ in size, as the processors of glm4v,
           qwen2_vl, qwen2_5_vl, qwen3_vl and ernie4_5_vl_moe lay them out: one of 400 to 131,072
           tokens; 8 and 32 padded rows; 16 and 32 packed sequences, for which what knows no
           packing is called one after the other; one prompt in which pictures touch. Each stands
           for five workloads, one for each family, such as mixed-glm4v
  pictures, pictures-batch, pictures-packed, pictures-step
           two pictures of the same kind in one row of 300 tokens, in two padded rows, in two packed
           sequences, and in a step of two requests, of each family; for --busy
  seed     one row of 1 to 131,072 tokens: a 256-token image and a 256-token video frame in text
           (text alone below 1,024)
  video    one row of 4,096, 32,768 and 131,072 tokens: a video of 256-token frames, 8 text tokens
           between them
  batch    32 rows of 4,096: images, videos, padding on both sides
  short    one row of 300: a 64-token image and a 64-token video frame
  long     as video, of 1,048,576 to 8,388,608 tokens; not for what takes seconds there
  qwen2_5_vl
  qwen3_vl
  ernie4_5_vl_moe
  qwen3_omni_moe
           that family's prompts, one row of 1,024, 16,384 and 131,072 tokens: a 256-token image, a
           video of 256-token steps in half of the row (a block, with seconds where the family has
           them, or frames between timestamps), text, and with qwen3_omni_moe audio
  mixed-omni, mixed-omni-sound, mixed-omni2.5, mixed-omni2.5-sound
           one row of 180 to 131,072 tokens for qwen3_omni_moe and qwen2_5_omni: pictures, clips
           and audio that all differ in size; the clips without and with their sound
  mixed-omni-batch, mixed-omni-batch-sound, mixed-omni2.5-batch, mixed-omni2.5-batch-sound
           8 such prompts of up to 1,000 tokens, padded
  mixed-own, mixed-own-batch
           prompts of pictures and clips that all differ in size for the families with a rule of
           their own: glm_image, hunyuan_vl, isaac, bailing_moe_v3_vl (its pictures alone as well,
           which vLLM numbers otherwise) and minicpmv4_7; one of 300 to 131,072 tokens, and 8 padded
           rows of up to 1,000. What GLM-Image generates is numbered, too
  step     one step of 256 requests of up to 4,096 tokens, their prompts known: every fourth has a
           chunk of at most 512 of its prompt, the others decode a token each
  step-decode  the same, all decoding
  step-omni, step-omni-decode
           both, of Qwen3-Omni's pictures, silent clips and audio of many sizes

providers:
  vecrope                  vecrope.get_rope_index as users call it: eager, values checked; for steps
                           RopeIndexPlan.step of the plan of all requests
  vecrope-unchecked        with validate=False
  vecrope-compiled         the same under torch.compile(fullgraph=True, dynamic=True); a graph
                           serves many points, and has its compile time at the first
  vecrope-placeholders     vecrope.get_rope_index_from_placeholders, told where placeholders are
  vecrope-collate          vecrope.collate: samples made one batch, and numbered
  vecrope-batch-positions  the positions of that batch alone, with a row of text where it is packed
  vecrope-plan             the positions of vecrope.plan_from_placeholders, told the same
  vecrope-concatenate      for steps: vecrope.concatenate_plans, then the step
  vecrope-replace          for steps: 8 requests of the held plan leave, 8 come in their places
                           (concatenate_plans, RopeIndexPlan.replace), then the step
  vecrope-runner           vecrope.RopeIndexRunner called on the prompt; needs a CUDA device
  vecrope-runner-in-place  the same with the prompt in the runner's own buffers
  dense                    for steps: positions written out as (256, 3, 4096) int32, and a gather;
                           that is how vLLM's runner holds them, as wide as a prompt may be
  loop                     vecrope.testing.reference: the readable loop, on Python lists
  vecrope-patched          get_rope_index of a patched model of the installed transformers
  transformers             get_rope_index of the family's model, installed
  sglang-host              the same over ids on the host, and one copy of the answer
  sglang-old               get_rope_index_glm4v of an SGLang as of 0.5.8, needs --sglang-old
  sglang                   the family's function of an SGLang as of 0.5.23, needs --sglang; for
                           steps _compute_mrope_positions_extend and _decode
  vllm                     get_mrope_input_positions of vLLM's models, needs --vllm
  lmms-engine              the functions of lmms-engine 0.1.4 for qwen2_5_vl and qwen3_vl, needs
                           --lmms-engine
  sglang-omni              the function of sglang-omni 0.1.9 for qwen3_omni_moe, needs --sglang-omni
  text-only                sglang's answer to a prompt of text alone, as a lower bound, needs
                           --sglang
"""
_RUN_EPILOG = """\
exit codes: 0 all points measured, 1 a point failed (see its row), 2 bad arguments

`python -m bench plot results.csv --out results.svg` draws the rows; see its --help.
`python -m bench readme results.csv` puts them into the committed files, tables and charts.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line instead of the usage as well."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["plot"]:
        return _plot(arguments[1:])
    if arguments[:1] == ["readme"]:
        return _readme(arguments[1:])
    return _run(arguments)


def _run(argv: Sequence[str]) -> int:
    parser = _run_parser()
    options = parser.parse_args(argv)
    if options.busy and options.device != "cpu":
        parser.error("--busy is for --device cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, torch finds none")
    wheels = {name: getattr(options, name) for name in WHEEL_NAMES}
    configs = [
        Config(name, seq_len, options.device, threads, options.seconds, busy=busy)
        for name in _names(options.workload or (_BUSY_GROUPS if options.busy else SIZES))
        for seq_len in SIZES[name]
        if options.max_tokens is None
        or make_workload(name, seq_len).input_ids.numel() <= options.max_tokens
        for threads, busy in _surroundings(options.threads, options.busy)
    ]
    if not configs:
        parser.error(f"no workload has at most {options.max_tokens} tokens")
    with ExitStack() as stack:
        try:
            names = options.provider or (BUSY_PROVIDERS if options.busy else None)
            providers = make_providers(names, wheels)
            file = options.csv and stack.enter_context(options.csv.open("w", encoding="utf-8"))
        except (ValueError, OSError) as error:
            parser.error(str(error))
        _keep_freed_memory()
        stack.enter_context(_empty_compile_cache())
        results = []
        writer = ResultWriter(file) if file else None
        for result in run(configs, providers):
            results.append(result)
            if writer:
                writer.write(result)
    print(format_table(results))
    return 1 if any(result.failed for result in results) else 0


def run(configs: Sequence[Config], providers: Sequence[Provider]) -> Iterator[Result]:
    """Measure the providers at one point after the other, in turns, and say so on stderr."""
    total, number = len(configs) * len(providers), 0
    environment = describe_environment(configs[0].device, configs[0].threads)
    for config in configs:
        with _threads(config.threads):
            environment = replace(environment, threads=config.threads)
            results = run_point(config, providers, environment)
        for result in results:
            number += 1
            place = f"[{number:{len(str(total))}}/{total}] {config.workload} {config.seq_len:,}"
            if config.busy:
                place += f" ({config.threads} threads, {config.busy} busy)"
            outcome = f"{result.status}: {result.error}"
            if result.status == "ok":
                outcome = f"{result.median_us:,.1f} µs"
            print(f"{place} {result.provider}: {outcome}", file=sys.stderr, flush=True)
            yield result


def _plot(argv: Sequence[str]) -> int:
    parser = _Parser(
        prog="python -m bench plot",
        description="Draw time against T from the rows of `python -m bench --csv`.",
    )
    parser.add_argument("results", nargs="+", type=Path, help="CSV files, all of one device")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="what to write: .svg, .png, .pdf"
    )
    options = parser.parse_args(argv)
    try:
        plot(read_results(options.results), options.out)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    return 0


def _readme(argv: Sequence[str]) -> int:
    parser = _Parser(
        prog="python -m bench readme",
        description="Put rows into the committed files, in the place of those of the same points, "
        "and write the READMEs' tables and charts anew.",
    )
    parser.add_argument(
        "results", nargs="*", type=Path, help="CSV files; of a point that is in several, the last"
    )
    options = parser.parse_args(argv)
    try:
        readme.merge(options.results)
        readme.write()
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    return 0


def _run_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bench",
        description=_RUN_DESCRIPTION,
        epilog=_RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--workload", nargs="+", choices=(*GROUPS, *SIZES), metavar="NAME",
        help="default: all; with --busy those of pictures",
    )  # fmt: skip
    add(
        "--provider", nargs="+", choices=PROVIDERS, metavar="NAME",
        help="default: all whose wheels are given; with --busy vecrope's and transformers",
    )  # fmt: skip
    wheel = "a wheel of {}, or the folder that it is installed or unpacked in"
    add("--sglang", type=Path, metavar="PATH", help=wheel.format("sglang 0.5.23 or later"))
    add("--sglang-old", type=Path, metavar="PATH", help=wheel.format("sglang 0.5.8"))
    add("--vllm", type=Path, metavar="PATH", help=wheel.format("vllm 0.33"))
    add("--lmms-engine", type=Path, metavar="PATH", help=wheel.format("lmms-engine 0.1.4"))
    add("--sglang-omni", type=Path, metavar="PATH", help=wheel.format("sglang-omni 0.1.9"))
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    add(
        "--threads", type=_positive_int, metavar="N",
        help="of torch, on the CPU; default: 1, and torch's own number where cores are busy",
    )  # fmt: skip
    add(
        "--busy", action="store_true",
        help="measure each point twice: with one thread on quiet cores, then with torch's own "
        "number of threads while another process spins on each core",
    )  # fmt: skip
    add(
        "--max-tokens", type=_positive_int, metavar="N",
        help="leave out what has more tokens, padding included; default: no limit",
    )  # fmt: skip
    add(
        "--seconds", type=_positive_float, default=0.5, metavar="S",
        help="to spend on the repeats of each point, of which at least 5 are made; default: 0.5",
    )  # fmt: skip
    add("--csv", type=Path, metavar="FILE", help="write the rows to FILE, replacing it")
    return parser


def _names(chosen: Iterable[str]) -> list[str]:
    """Return the workloads that names and names of groups stand for, without repeats."""
    return list(dict.fromkeys(name for word in chosen for name in GROUPS.get(word, (word,))))


def _surroundings(threads: int | None, busy: bool) -> list[tuple[int, int]]:
    """Return numbers of threads and of busy cores with which to measure a point."""
    if not busy:
        return [(threads or 1, 0)]
    return [(1, 0), (threads or torch.get_num_threads(), len(cores()))]


def _keep_freed_memory() -> None:
    """Tell glibc's allocator, where it is in use, to keep what is freed for what comes next.

    By default it returns the top of its heap, or not, depending on what else lies there. An answer
    of some megabytes then takes a thousand page faults more in one run than in another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def _positive_int(text: str) -> int:
    value = int(text) if text.lstrip("-").isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return value


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _empty_compile_cache() -> Iterator[None]:
    """Keep what earlier runs compiled out of the compile times of this one."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            os.environ.pop(name) if before is None else os.environ.update({name: before})


if __name__ == "__main__":
    sys.exit(main())
