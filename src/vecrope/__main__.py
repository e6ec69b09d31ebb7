"""`python -m vecrope`: look at a prompt's segments and positions, and see them confirmed."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn, get_args

from vecrope import __version__
from vecrope.cli.demo import conversation
from vecrope.cli.load import default_convention, load_prompt, load_spec
from vecrope.cli.prompt import CommandError
from vecrope.registration import list_families
from vecrope.spec import Convention, MRopeSpec

_PROGRAM = "python -m vecrope"
_MODEL = "glm4v"
_LEAST_COLUMNS, _MOST_COLUMNS = 80, 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        0; 1 if the pipeline and the reference disagree; 2 for bad arguments or files, of which one
        line on stderr tells; 141, as of a shell's SIGPIPE, if the reader of stdout goes away.
    """
    try:
        return _run(_parser().parse_args(argv))
    except CommandError as error:
        # A message from elsewhere may be of several lines.
        print(f"{_PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, a pager for one, has seen enough; the interpreter's last flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(arguments: argparse.Namespace) -> int:
    if arguments.module is not None:
        sys.path.insert(0, "")
        try:
            import_module(arguments.module)
        except ImportError as error:
            raise CommandError(f"argument --import: {error}") from error
    if arguments.config is None:
        name = arguments.model or _MODEL
        try:
            convention = arguments.convention or default_convention(name)
            spec = MRopeSpec.for_model(name, convention=convention)
        except ValueError as error:
            remedy = "; here, --config CONFIG.json" if "use from_config" in str(error) else ""
            raise CommandError(f"argument --model: {error}{remedy}") from error
    else:
        spec = load_spec(arguments.config, arguments.convention)
    # What --help has no need of is imported here.
    from vecrope.cli.confirm import confirm
    from vecrope.cli.plot import draw
    from vecrope.cli.report import render
    from vecrope.cli.table import segment_rows

    prompt = conversation(spec) if arguments.input is None else load_prompt(arguments.input, spec)
    answer = confirm(prompt)
    rows = segment_rows(prompt)
    if arguments.plot is not None:
        draw(prompt, rows, answer, arguments.plot)
    columns = min(max(shutil.get_terminal_size().columns, _LEAST_COLUMNS), _MOST_COLUMNS)
    print("\n".join(render(prompt, rows, answer, columns)), flush=True)
    if answer.disagreement is not None:
        print(f"{_PROGRAM}: WRONG POSITIONS: {answer.disagreement}", file=sys.stderr)
        return 1
    if arguments.plot is not None:
        print(f"\nThe picture is in {arguments.plot}.")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=_PROGRAM,
        description="Show the segments and the M-RoPE positions of a prompt, confirm them against "
        "the readable loop, and say how long both took. Without a prompt, a conversation with an "
        "image and a video is laid out.",
        epilog="PROMPT.json holds an object: input_ids, a list of ids or a list of rows; and where "
        "wanted attention_mask and mm_token_type_ids, of the same form, image_grid_thw and "
        "video_grid_thw, lists of [t, h, w] in patches, and second_per_grid_ts, a list of numbers.",
    )
    parser.add_argument(
        "--import",
        dest="module",
        metavar="MODULE",
        help="a module to import first, which registers a family",
    )
    family = parser.add_mutually_exclusive_group()
    family.add_argument(
        "--model",
        metavar="MODEL_TYPE",
        help=f"the family, with its default ids (default: {_MODEL}), one of: "
        + ", ".join(list_families()),
    )
    family.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG.json",
        help="a model's config.json, in place of --model",
    )
    parser.add_argument(
        "--convention",
        choices=get_args(Convention),
        help="the upstream whose answers to give (default: the first of transformers, sglang and "
        "vllm that has the family)",
    )
    parser.add_argument("--input", type=Path, metavar="PROMPT.json", help="the prompt to show")
    parser.add_argument(
        "--plot", type=Path, metavar="OUT.png", help="draw the positions; needs matplotlib"
    )
    parser.add_argument("--version", action="version", version=f"vecrope {__version__}")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
