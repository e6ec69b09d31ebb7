"""What a function of an upstream is, whatever its release is called: a hash of its code."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

# Of two functions that differ in nothing else the answers are equal; some are not in every Python.
_LEFT_OUT = {"annotation", "ctx", "kind", "returns", "type_comment", "type_params"}


def fingerprint(function: Callable[..., Any], *helpers: Callable[..., Any]) -> str | None:
    """Return a hash of what a function does, together with the helpers that it calls.

    Formatting, comments, docstrings and annotations do not count, nor does the version of Python.
    None: the source of one of them cannot be read.
    """
    try:
        return fingerprint_of(definition_of(each) for each in (function, *helpers))
    except (OSError, TypeError, SyntaxError):
        return None


def fingerprint_of(definitions: Iterable[ast.AST]) -> str:
    """Return the `fingerprint` of functions of which the syntax trees are known."""
    digest = hashlib.sha256()
    for definition in definitions:
        digest.update(repr(_normalised(definition)).encode())
    return digest.hexdigest()[:16]


def definition_of(function: Callable[..., Any]) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """Return the syntax tree of a function.

    Raises:
        OSError: if its source is not found. Python 3.13 takes the text that it was started with
            (`-c`) for the source of what `exec` has made.
        TypeError: if it is not written in Python.
        SyntaxError: if its source cannot be parsed.
    """
    function = inspect.unwrap(function)
    statements = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    if not statements or not isinstance(statements[0], ast.FunctionDef | ast.AsyncFunctionDef):
        raise OSError(f"the source of {function!r} is not that of a function")
    return statements[0]


def _normalised(node: Any) -> Any:
    if isinstance(node, list):
        return [_normalised(each) for each in node if not _is_docstring(each)]
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        node = ast.Assign(targets=[node.target], value=node.value)
    if not isinstance(node, ast.AST):
        return node
    fields = (
        (name, _normalised(value)) for name, value in ast.iter_fields(node) if name not in _LEFT_OUT
    )
    return type(node).__name__, [(name, value) for name, value in fields if value not in (None, [])]


def _is_docstring(node: Any) -> bool:
    """Say whether a statement is a string, which does nothing."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
