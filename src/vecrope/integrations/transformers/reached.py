"""The functions that a method calls, as far as they are of its own package."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from vecrope.integrations.fingerprint import definition_of


def helpers_of(method: Callable[..., Any], cls: type) -> list[Callable[..., Any]]:
    """Return every function of the method's package that it reaches, in the order of the code.

    Args:
        method: a function whose first argument is an instance of `cls`.
        cls: where the methods that it calls are looked up.

    Raises:
        OSError: if the source of one of them cannot be found.
        TypeError: if one of them is not written in Python.
    """
    found = [method]
    for function in found:
        found += [each for each in dict.fromkeys(_calls(function, cls)) if each not in found]
    return found[1:]


def _calls(function: Callable[..., Any], cls: type) -> Iterator[Callable[..., Any]]:
    definition = definition_of(function)
    package = function.__module__.partition(".")[0]
    names: dict[str, Any] = getattr(function, "__globals__", {})
    for statement in definition.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                value = names.get(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                value = getattr(cls, node.attr, None) if node.value.id == "self" else None
            else:
                continue
            if isinstance(value, FunctionType) and value.__module__.partition(".")[0] == package:
                yield value
