"""`python -m vecrope`: look at a prompt's segments and positions, and see them confirmed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, get_args

from vecrope.cli.confirm import confirm
from vecrope.cli.demo import NAMES, conversation
from vecrope.cli.load import load_prompt, load_spec
from vecrope.cli.plot import draw
from vecrope.cli.prompt import CommandError
from vecrope.cli.report import render
from vecrope.cli.table import segment_rows
from vecrope.spec import Convention, MRopeSpec

_PROGRAM = "python -m vecrope"
_MODEL = "glm4v"


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
    if arguments.config is None:
        try:
            spec = MRopeSpec.for_model(arguments.model or _MODEL, convention=arguments.convention)
        except ValueError as error:
            raise CommandError(f"argument --model: {error}") from error
    else:
        spec = load_spec(arguments.config, arguments.convention)
    prompt = conversation(spec) if arguments.input is None else load_prompt(arguments.input, spec)
    answer = confirm(prompt)
    rows = segment_rows(prompt)
    if arguments.plot is not None:
        draw(prompt, rows, answer, arguments.plot)
    print("\n".join(render(prompt, rows, answer)), flush=True)
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
    family = parser.add_mutually_exclusive_group()
    family.add_argument(
        "--model",
        choices=NAMES,
        help=f"the family, with its default ids (default: {_MODEL})",
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
        default="sglang",
        help="the upstream whose answers to give (default: %(default)s)",
    )
    parser.add_argument("--input", type=Path, metavar="PROMPT.json", help="the prompt to show")
    parser.add_argument(
        "--plot", type=Path, metavar="OUT.png", help="draw the positions; needs matplotlib"
    )
    parser.add_argument("--version", action="version", version=f"vecrope {version('vecrope')}")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
