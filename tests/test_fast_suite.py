"""What `-m "not slow"` leaves: every public function, and every method, is still used."""

import ast
from functools import cache
from importlib import import_module
from inspect import isclass, isfunction, signature
from pathlib import Path

import pytest

from tests.conftest import SLOW, TESTS

# These are slow, or skipped where there is no GPU, engine or wheel.
LEFT_OUT = {"slow", "gpu", "engines", "wheels", "releases"}
MODULES = (
    "vecrope",
    "vecrope.integrations.sglang",
    "vecrope.integrations.transformers",
    "vecrope.integrations.vllm",
    "vecrope.testing",
    "vecrope.testing.reference",
)


def is_slow(path, test=None):
    """Say whether a file's tests, or one of them, are among the slow ones."""
    names = [path, *path.parents] if test is None else [f"{path}::{test}"]
    return any(str(name) in SLOW for name in names)


def is_marked(node):
    """Say whether a test is marked as slow, or as one that needs more than this machine has."""
    return any(getattr(part, "attr", None) in LEFT_OUT for part in ast.walk(node))


def names_used(path, source):
    """Return what the file's tests use where they are not slow; to import a name is not to use it.

    These are the names that come from vecrope, and each method that is called, with a dot before.
    """
    used, ours, modules = set(), {}, set()
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith("vecrope"):
            ours |= {alias.asname or alias.name: alias.name for alias in statement.names}
        elif isinstance(statement, ast.Import):
            names = (alias.asname or alias.name for alias in statement.names)
            modules |= {name for name in names if name.startswith("vecrope")}
        elif isinstance(statement, ast.FunctionDef) and (
            is_slow(path, statement.name) or any(map(is_marked, statement.decorator_list))
        ):
            continue
        elif ast.unparse(statement).startswith("pytestmark =") and is_marked(statement):
            return set()
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and node.id in ours:
                used.add(ours[node.id])
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = node.value.id
                used |= {node.attr} if owner in modules or owner in ours else set()
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                used.add(f".{node.func.attr}")
    return used


def public_values():
    """Return the public functions and classes by name."""
    names = [(module, name) for module in map(import_module, MODULES) for name in module.__all__]
    values = {name: getattr(module, name) for module, name in names}
    return {name: value for name, value in values.items() if isfunction(value) or isclass(value)}


def public_functions(values):
    """Yield the name of each public function and, behind its class's, of each public method."""
    for name, value in values.items():
        if isfunction(value):
            yield name
        elif value.__module__.startswith("vecrope."):
            for member in vars(value):
                if not member.startswith("_") and callable(getattr(value, member)):
                    yield f"{name}.{member}"


VALUES = public_values()


@cache
def files():
    """Return what each file of tests that is not slow uses."""
    paths = {path.relative_to(TESTS): path for path in TESTS.rglob("test_*.py")}
    return [
        names_used(path, file.read_text(encoding="utf-8"))
        for path, file in paths.items()
        if not is_slow(path)
    ]


def makers(owner):
    """Return a class's name and those of the functions that return one of it."""
    functions = {name: value for name, value in VALUES.items() if isfunction(value)}
    return {owner} | {
        name
        for name, value in functions.items()
        if owner in str(signature(value).return_annotation)
    }


@pytest.mark.parametrize("name", list(public_functions(VALUES)))
def test_a_public_function_is_used_by_a_test_that_is_not_slow(name):
    owner, _, method = name.rpartition(".")
    # Other classes have methods of the same name: one of this class is to be in the same file.
    assert any(
        f".{method}" in used and makers(owner) & used if owner else name in used for used in files()
    )


def test_only_what_comes_from_vecrope_and_is_used_where_tests_are_fast_counts(monkeypatch):
    path = Path("test_x.py")
    source = """
import vecrope
from elsewhere import other
from vecrope import called as ours, imported, timed, launched
def test_fast():
    ours(plan.method(), other(), vecrope.attribute, text.unrelated)
def test_slow():
    timed()
@pytest.mark.gpu
def test_on_a_card():
    launched()
"""
    monkeypatch.setattr(f"{__name__}.SLOW", ("test_x.py::test_slow", "folder"))
    assert names_used(path, source) == {"called", ".method", "attribute"}
    assert names_used(path, f"{source}\npytestmark = pytest.mark.gpu\n") == set()
    assert is_slow(Path("folder/test_y.py"))
    assert not is_slow(path)


def test_every_slow_path_exists():
    for path, _, test in (name.partition("::") for name in SLOW):
        assert (TESTS / path).exists()
        assert not test or f"def {test}(" in (TESTS / path).read_text(encoding="utf-8")
