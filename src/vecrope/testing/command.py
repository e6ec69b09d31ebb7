"""`python -m vecrope.testing`: the property suite, put to anyone's function."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from textwrap import indent
from traceback import extract_tb
from types import MethodType
from typing import Any, get_args

import torch

from vecrope.cli.load import default_convention, load_spec
from vecrope.cli.prompt import CommandError
from vecrope.spec import Convention, MRopeSpec
from vecrope.testing.matching import assert_matches
from vecrope.testing.prompt import Prompt
from vecrope.testing.stand_in import StandIn

__all__ = ["load", "main"]

Function = Callable[..., Any]
# The letters of `Prompt.symbols`.
_LEGEND = "its tokens (t text, I image, V video, A audio, n newline; brackets are markers):"
Property = tuple[str, Any, Callable[[Function, Prompt], None]]


def load(path: str, adapter: str | None = None, config: str | None = None) -> Function:
    """Return a function that takes the arguments of a prompt by name.

    A method of a model of transformers, `package.module:Class.method`, is called on a stand-in that
    has a configuration and the class's methods, and no weights.

    Args:
        path: `package.module:function`. It is given those arguments of a prompt that it has
            parameters for.
        adapter: the path of a function that is called instead, with the function and with all
            arguments of the prompt by name.
        config: the path of a `config.json`, for a method of a model; None: the class's defaults.

    Raises:
        ValueError: if there is no such function, or it needs an argument that no prompt has.
    """
    function = _resolved(path, config)
    if adapter is not None:
        call = _resolved(adapter)
        return lambda **arguments: call(function, **arguments)
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]

    def matched(**arguments: Any) -> Any:
        missing = [name for name in needed if name not in arguments]
        if missing:
            raise UnmatchedError(
                f"{path} needs {', '.join(missing)}, a prompt has {', '.join(arguments)}; "
                "name an --adapter that takes the function and a prompt's arguments"
            )
        return function(
            **{name: value for name, value in arguments.items() if takes_all or name in parameters}
        )

    return matched


class UnmatchedError(ValueError):
    """The function has a parameter that no argument of a prompt has the name of."""


def _resolved(path: str, config: str | None = None) -> Function:
    module, _, names = path.partition(":")
    if not names:
        raise ValueError(f"a function is named package.module:function, got {path!r}")
    owner: Any = None
    try:
        value: Any = import_module(module)
        for name in names.split("."):
            owner, value = value, getattr(value, name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no {path}: {error}") from error
    if inspect.isclass(owner) and inspect.isfunction(value) and hasattr(owner, "config_class"):
        given = (
            owner.config_class() if config is None else owner.config_class.from_json_file(config)
        )
        return MethodType(value, StandIn(owner, given))
    if not callable(value):
        raise ValueError(f"{path} must be a function, got {type(value).__name__}")
    function: Function = value
    return function


def _properties(spec: MRopeSpec, *, slow: bool) -> Iterator[Property]:
    from vecrope.testing import conversations, token_soup

    yield "conversations are answered as by the reference", conversations(spec), assert_matches
    yield "the arguments are left as they were", conversations(spec), _assert_unchanged
    soup = {"fit": True} if spec.own_rule is None else {}
    # Some upstreams fail where all tokens of a row are masked.
    with_tokens = token_soup(spec, **soup).filter(lambda prompt: all("1" in m for m in prompt.mask))
    yield "hostile prompts are answered as by the reference", with_tokens, _if_any
    if slow:
        yield "a row may hold no token", token_soup(spec, **soup), _if_any
        if spec.own_rule is None:
            touching = conversations(spec, touching=True)
            yield "images and frames that touch are told apart", touching, assert_matches
        misfits = token_soup(spec, **({"fit": False} if soup else {}))
        yield "a prompt without positions is refused", misfits, assert_matches


def _if_any(function: Function, prompt: Prompt) -> None:
    """Hold a function to the reference's answer, where there is one."""
    from vecrope.testing.reference import Refusal

    try:
        prompt.expected()
    except Refusal:
        return
    assert_matches(function, prompt)


def _assert_unchanged(function: Function, prompt: Prompt) -> None:
    given = {
        name: value.clone()
        for name, value in prompt.arguments().items()
        if isinstance(value, torch.Tensor)
    }
    function(**prompt.arguments())
    for name, value in given.items():
        now = prompt.arguments()[name]
        if not torch.equal(value, now):
            raise AssertionError(f"{name} was {value.tolist()}, and is {now.tolist()} now")


def _search(
    function: Function, one: Property, examples: int, seed: int
) -> tuple[Prompt, Exception] | None:
    """Return the shortest prompt that fails and its error, or None."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    _, prompts, check = one
    failed: list[tuple[Prompt, Exception]] = []

    @seeded(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(prompts)
    def run(prompt: Prompt) -> None:
        try:
            check(function, prompt)
        except Exception as error:
            # The last one is the shortest.
            failed[:] = [(prompt, error)]
            raise

    try:
        run()
    except Exception as error:
        if not failed or isinstance(error, UnmatchedError):
            raise
        return failed[0]
    return None


def _report(prompt: Prompt, error: Exception, loaded: str) -> str:
    """Describe a failure: what is wrong, the prompt as symbols, and a snippet to paste."""
    reason = str(error).partition("\nfor Prompt")[0]
    if not isinstance(error, AssertionError):
        at = extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {reason}\n  in {at.name}, {at.filename}:{at.lineno}"
    shown = "\n".join([reason, "", _LEGEND, *(f"  {row}" for row in prompt.symbols)])
    return f"""{indent(shown, "  ")}

from vecrope import MRopeSpec
from vecrope.testing import Prompt, assert_matches
from vecrope.testing.command import load

prompt = {prompt!r}
assert_matches({loaded}, prompt)
"""


def _arguments(options: argparse.Namespace) -> list[str]:
    """Return the arguments of `load`, as they are written."""
    named = ((name, getattr(options, name)) for name in ("adapter", "config"))
    return [repr(options.function), *(f"{name}={path!r}" for name, path in named if path)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 where all properties hold, 1 where one does not."""
    parser = argparse.ArgumentParser(
        prog="python -m vecrope.testing",
        description="Put the property suite to a function that computes M-RoPE positions. The exit "
        "code is 0 if all properties hold, 1 if one does not, 2 if the function cannot be called.",
    )
    parser.add_argument("function", help="package.module:function, or :Class.method of a model")
    family = parser.add_mutually_exclusive_group(required=True)
    family.add_argument("--model", help="a model type with default ids, such as glm4v")
    family.add_argument("--config", metavar="CONFIG.json", help="a model's config.json")
    parser.add_argument(
        "--convention",
        choices=get_args(Convention),
        help="whose positions are expected, as upstreams number the same model differently "
        "(default: the first of transformers, sglang and vllm that has the family)",
    )
    parser.add_argument(
        "--adapter",
        help="package.module:function that is called with the function and a prompt's arguments, "
        "if their names differ, and returns position_ids and rope_deltas",
    )
    parser.add_argument(
        "--examples", type=int, default=200, help="prompts of each property (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (%(default)s)")
    parser.add_argument(
        "--slow", action="store_true", help="also what upstreams may fail at; ten times the prompts"
    )
    options = parser.parse_args(argv)
    sys.path.insert(0, "")
    failures = 0
    try:
        # The function's module may register the family.
        function = load(options.function, options.adapter, options.config)
        if options.config is None:
            convention = options.convention or default_convention(options.model)
            spec = MRopeSpec.for_model(options.model, convention=convention)
        else:
            spec = load_spec(Path(options.config), options.convention)
        examples = options.examples * (10 if options.slow else 1)
        for one in _properties(spec, slow=options.slow):
            failure = _search(function, one, examples, options.seed)
            print("FAILED" if failure else "passed", one[0])
            if failure:
                failures += 1
                print(_report(*failure, f"load({', '.join(_arguments(options))})"))
    except (ValueError, CommandError) as error:
        parser.error(str(error))
    return int(failures > 0)
