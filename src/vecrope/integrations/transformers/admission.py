"""Whether a method may be replaced, and by what: proven for its fingerprint, or checked now."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from vecrope.families import FAMILIES
from vecrope.families.registry import NOT_SUPPORTED
from vecrope.integrations.fingerprint import fingerprint
from vecrope.integrations.transformers.calls import Call
from vecrope.integrations.transformers.known import known
from vecrope.integrations.transformers.reached import helpers_of
from vecrope.integrations.transformers.rules import Rules, rules_of
from vecrope.spec import MRopeSpec

Check = Literal["known", "self", "always"]

# What was checked in this process: a method, the name of its rules, and their spec.
_CHECKED: set[tuple[object, str, MRopeSpec]] = set()


@dataclass(frozen=True)
class Method:
    """A method that may be replaced, once a configuration says what its rules are.

    Attributes:
        original: the function, whose first argument is the model.
        cls: the class of the model.
        fingerprint: of the function and all that it calls in its package; None: of unknown source.
        is_known: whether the table has it.
        is_proven: whether that is enough.
        rules: those that it may follow, by their names; the one that is proven.
    """

    original: Callable[..., Any]
    cls: type
    fingerprint: str | None
    is_known: bool
    is_proven: bool
    rules: dict[str, Rules]

    def rules_of(self, config: Any) -> tuple[Call, MRopeSpec]:
        """Return what answers for a model of this configuration.

        Raises:
            RuntimeError: if the method is not in the table and a prompt shows a difference, or if
                the check cannot be made now.
        """
        for name, rules in self.rules.items():
            spec = rules.spec_of(config)
            if self.is_proven or self._key(name, spec) in _CHECKED:
                return rules.call, spec
        if torch.compiler.is_compiling() or _is_capturing():
            raise RuntimeError(
                f"get_rope_index of {self.cls.__name__} was not compared with vecrope's yet, which "
                "cannot be done in a graph: patch the model, or call it once"
            )
        return self._compare(config)

    def _key(self, name: str, spec: MRopeSpec) -> tuple[object, str, MRopeSpec]:
        return self.fingerprint or self.original, name, spec

    def _compare(self, config: Any) -> tuple[Call, MRopeSpec]:
        # On request: they use vecrope.testing.
        from vecrope.integrations.transformers.self_check import first_difference
        from vecrope.integrations.transformers.self_check_prompts import self_check_prompts

        differences = []
        for name, rules in self.rules.items():
            spec = rules.spec_of(config)
            seed = int(self.fingerprint or "0", 16) % 2**63
            prompts = self_check_prompts(spec, seed)
            difference = first_difference(
                self.original, self.cls, config, rules.call, spec, prompts
            )
            if difference is None:
                _CHECKED.add(self._key(name, spec))
                if not self.is_known:
                    warnings.warn(
                        f"{_described(self.original, self.cls)} is not known to this vecrope; it "
                        f"agreed with it on all prompts of a check, under the rules {name!r}",
                        stacklevel=2,
                    )
                return rules.call, spec
            differences.append(f"under the rules {name!r} {difference}")
        raise RuntimeError(
            f"{_described(self.original, self.cls)} is not known to this vecrope and does not "
            f"agree with it: {'; '.join(differences)}"
        )


def examine(original: Callable[..., Any], cls: type, model_type: str, check: Check) -> Method:
    """Return a method that may be replaced, as far as can be said without a configuration.

    Raises:
        ValueError: for a check or a family that is not known, and for a method that is defined
            outside of transformers, unless everything is to be checked.
        RuntimeError: for a method that is known to answer otherwise, that is not known, where it
            has to be, or that has another signature.
    """
    if check not in get_args(Check):
        raise ValueError(f"check must be 'known', 'self' or 'always', got {check!r}")
    own = _defined_in(original).startswith("transformers.")
    if not own and check != "always":
        raise ValueError(
            f"get_rope_index of {cls.__name__} must be one of transformers, got that of "
            f"{_place(original)}: call vecrope.get_rope_index in it, or have it compared by "
            "check='always'"
        )
    families = [name for name, family in FAMILIES.items() if "transformers" in family.rules]
    if model_type in NOT_SUPPORTED:
        raise ValueError(
            f"get_rope_index of {cls.__name__} is not replaced: {NOT_SUPPORTED[model_type]}, which "
            "vecrope does not support"
        )
    if model_type not in families:
        raise ValueError(
            f"{cls.__name__} must have one of the model types {', '.join(families)}, got "
            f"{model_type!r}"
        )
    code = _fingerprint(original, cls) if own else None
    entry = known(model_type, code)
    if check != "always":
        reason = None if entry is None else entry.get("refused")
        if reason is not None:
            raise RuntimeError(f"{_described(original, cls)} is not replaced: {reason}")
        if entry is None and check == "known":
            raise RuntimeError(
                f"{_described(original, cls)} is not known to this vecrope (fingerprint {code}): "
                "install a release that the README lists, or have it compared by check='self'"
            )
    rules = fitting(original, model_type)
    if not rules:
        takes = " or ".join(
            f"({', '.join(each.name for each in _parameters(rules.call, 3))})"
            for rules in rules_of(model_type).values()
        )
        found = ", ".join(each.name for each in _parameters(original, 1))
        raise RuntimeError(f"get_rope_index of {cls.__name__} must take {takes}, got ({found})")
    is_proven = entry is not None and check != "always"
    if entry is not None and is_proven:
        rules = {entry["rules"]: rules_of(model_type)[entry["rules"]]}
    return Method(original, cls, code, entry is not None, is_proven, rules)


def _fingerprint(original: Callable[..., Any], cls: type) -> str | None:
    try:
        return fingerprint(original, *helpers_of(original, cls))
    except (OSError, TypeError, SyntaxError):
        return None


def fitting(original: Callable[..., Any], model_type: str) -> dict[str, Rules]:
    """Return the rules whose signature a method has, with or without `**kwargs`."""
    theirs = _shapes(original, 1)
    return {
        name: rules
        for name, rules in rules_of(model_type).items()
        if _shapes(rules.call, 3) == theirs
    }


def _shapes(function: Callable[..., Any], first: int) -> list[tuple[object, ...]]:
    parameters = _parameters(function, first)
    return [(each.name, each.kind, each.default) for each in parameters]


def _parameters(function: Callable[..., Any], first: int) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())[first:]
    return [each for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]


def _defined_in(original: Callable[..., Any]) -> str:
    """Return the module of a function's code, which a wrapper does not take over."""
    function = _code_of(original)
    name: str = getattr(function, "__globals__", {}).get("__name__", function.__module__)
    return name


def _place(original: Callable[..., Any]) -> str:
    code = getattr(_code_of(original), "__code__", None)
    where = f", {code.co_filename}:{code.co_firstlineno}" if code is not None else ""
    return f"{_defined_in(original)}{where}"


def _code_of(original: Callable[..., Any]) -> Any:
    """Return a function, or what a callable of an instance, or a `functools.partial`, calls."""
    function = getattr(original, "of_instance", original)
    return getattr(function, "func", function)


def _described(original: Callable[..., Any], cls: type) -> str:
    import transformers

    return (
        f"get_rope_index of {cls.__name__} in {_defined_in(original)}, transformers "
        f"{transformers.__version__},"
    )


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
